"""The collection on disk, assembled bodies, their pictures, and the picture of every kind."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from psd.config.errors import MissingError
from psd.embedded.captions import kinds
from psd.embedded.captions.grammar import parse
from psd.embedded.objects import gallery
from psd.embedded.objects.assemble import Body, assemble_object, count_choices, fit_into_ball, paint_palette
from psd.embedded.objects.collection import (
    VARIABLE,
    Collection,
    Model,
    choose_collection,
    find_collection,
    open_collection,
    read_table,
)
from psd.embedded.objects.forms import FORMS
from psd.embedded.objects.picture import main_colours, render_bodies
from psd.embedded.objects.surroundings import sample_background
from psd.embedded.objects.truth import render_truth
from psd.geometry.cameras import Cameras, camera_rays, turntable_cameras
from psd.geometry.rasterise import find_visible_faces
from psd.runtime.process_pool import map_unordered


def test_a_missing_folder_is_refused_with_the_cure(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(MissingError, match="--objects DIR or set PSD_OBJECTS"):
        find_collection()
    with pytest.raises(MissingError, match="has no folder `meshes`"):
        find_collection(tmp_path)
    (tmp_path / "meshes").mkdir()
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert find_collection() == tmp_path
    with pytest.raises(MissingError, match="lacks .*Fox.npz"):
        Collection(tmp_path).read_models("fox")


def test_a_chosen_folder_is_that_of_the_processes_started_after_it(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "nowhere")
    with pytest.raises(MissingError, match="has no folder `meshes`"):
        choose_collection(tmp_path)
    (tmp_path / "meshes").mkdir()
    monkeypatch.chdir(tmp_path.parent)
    choose_collection(tmp_path.name)
    assert list(map_unordered(find_collection, [None], 1)) == [tmp_path.resolve()], "a relative folder is made absolute"


def test_an_object_that_is_not_the_committed_one_is_refused(tmp_path):
    name = read_table()["fox"][0][0]
    (tmp_path / "meshes").mkdir()
    np.savez(tmp_path / "meshes" / name, vertices=np.zeros((3, 3), np.float32))
    with pytest.raises(MissingError, match="not the object that the embedded models were trained on"):
        Collection(tmp_path).read_models("fox")


def test_the_objects_are_what_the_table_says(collection):
    for noun, files in read_table().items():
        for (name, digest), model in zip(files, collection.read_models(noun), strict=True):
            assert hashlib.sha256((collection.folder / "meshes" / name).read_bytes()).hexdigest() == digest
            assert model.vertices.norm(dim=-1).max() == pytest.approx(1, abs=1e-3)
            assert int(model.faces.max()) < len(model.vertices) and int(model.face_palette.max()) < len(model.palette)
            assert bool(model.paint.any()) or len(kinds.read_kinds()[noun].colours) == 1 or noun == "star"


# -------------------------------------------------------------------------------------------------------------- bodies


def test_a_colour_paints_only_painted_rows_and_the_brightest_fully():
    palette = torch.tensor([[0.8, 0.8, 0.8], [0.4, 0.4, 0.4], [0.1, 0.2, 0.3]])
    model = Model(
        torch.zeros(3, 3), torch.tensor([[0, 1, 2]]), torch.zeros(1).long(), palette, torch.tensor([1, 1, 0]).bool()
    )
    painted = paint_palette(model, "red")
    red = torch.tensor(kinds.COLOURS["red"])
    torch.testing.assert_close(painted, torch.stack([red, 0.8 * red, palette[2]]))
    assert torch.equal(paint_palette(model, None), palette)


@pytest.mark.parametrize("noun", FORMS)
def test_primitives_are_closed_solids_that_vary(noun):
    def measure(generator: torch.Generator | None) -> float:
        """The volume, which winds of faces and their closing decide."""
        vertices, faces = FORMS[noun](generator)
        corner = vertices[faces].double()
        return float(torch.linalg.det(corner).sum() / 6)

    vertices, faces = FORMS[noun](None)
    corner = vertices[faces]
    directed = torch.linalg.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]).sum(0)
    assert directed.abs().max() < 1e-4  # the area vectors of a closed surface sum to nothing
    assert measure(None) > 0.3
    sizes = {round(measure(torch.Generator().manual_seed(seed)), 5) for seed in range(4)}
    assert len(sizes) == (1 if noun == "sphere" else 4)


def test_a_sphere_has_the_volume_of_a_ball():
    vertices, faces = FORMS["sphere"](None)
    assert float(torch.linalg.det(vertices[faces]).sum() / 6) == pytest.approx(4 / 3 * np.pi, rel=0.02)


def test_pairs_stand_as_they_are_said(tmp_path):
    collection = Collection(tmp_path)  # primitives need no file
    body = assemble_object(parse("a red cone on top of a blue cube"), collection)
    red = body.vertices[body.faces[body.face_palette == 0]].reshape(-1, 3)
    blue = body.vertices[body.faces[body.face_palette == 1]].reshape(-1, 3)
    assert red[:, 2].min() > blue[:, 2].max() - 0.1 and red[:, 2].max() > blue[:, 2].max()
    body = assemble_object(parse("a red cone next to a blue cube"), collection)
    red = body.vertices[body.faces[body.face_palette == 0]].reshape(-1, 3)
    blue = body.vertices[body.faces[body.face_palette == 1]].reshape(-1, 3)
    assert red[:, 1].max() < blue[:, 1].min()  # on the left as seen from +x
    assert red[:, 2].min() == pytest.approx(float(blue[:, 2].min()), abs=1e-5)
    assert body.vertices.norm(dim=-1).max() == pytest.approx(0.9, abs=1e-5)


def test_objects_vary_with_the_generator_alone(collection):
    caption = parse("a fox")
    one, same, other = (assemble_object(caption, collection, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.vertices, same.vertices) and torch.equal(one.palette, same.palette)
    assert not torch.equal(one.vertices, other.vertices) and not torch.equal(one.palette, other.palette)
    assert one.vertices.norm(dim=-1).max() <= 0.9 + 1e-5


# ------------------------------------------------------------------------------------------------------------ pictures


def find_nearest_slowly(corner: torch.Tensor, size: int) -> list[int]:
    """Plain loops in float64: the face of largest nearness whose triangle holds the sample's centre."""
    found = []
    for row in range(size):
        for column in range(size):
            best, nearest = -1, 0.0
            for index, ((ax, ay, an), (bx, by, bn), (cx, cy, cn)) in enumerate(corner.double().tolist()):
                px, py = column + 0.5, row + 0.5
                area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
                b = ((px - ax) * (cy - ay) - (py - ay) * (cx - ax)) / area
                c = ((bx - ax) * (py - ay) - (by - ay) * (px - ax)) / area
                if min(b, c, 1 - b - c) >= 0:
                    value = an + b * (bn - an) + c * (cn - an)
                    if value > nearest:
                        best, nearest = index, value
            found.append(best)
    return found


def test_the_nearest_face_is_that_of_plain_loops():
    generator = torch.Generator().manual_seed(4)
    corner = torch.rand(30, 3, 3, generator=generator) * torch.tensor([24.0, 24.0, 0.5]) + torch.tensor([-4, -4, 0.2])
    found, _ = find_visible_faces(corner, torch.zeros(30).long(), 1, 16)
    assert found.tolist() == find_nearest_slowly(corner, 16)
    assert len(set(found.tolist())) > 8


def test_faces_that_share_edges_cover_every_sample_once():
    """A fan of random triangles over a square: no gap and no sample that two of them cover."""
    generator = torch.Generator().manual_seed(0)
    middle = torch.rand(2, generator=generator) * 8 + 4
    outline = torch.tensor([[0, 0], [7.5, 0], [16, 0], [16, 16], [3, 16], [0, 16]])
    corner = torch.stack([torch.stack([outline[i], outline[(i + 1) % 6], middle]) for i in range(6)])
    corner = torch.cat([corner, torch.full((6, 3, 1), 0.5)], dim=-1)
    each = find_visible_faces(corner, torch.arange(6), 6, 16)[0].view(6, -1) >= 0
    assert torch.equal(each.sum(0), torch.ones(256).long())


def test_a_picture_is_the_same_for_any_order_and_winding_of_faces():
    vertices, faces = FORMS["torus"](None)
    body = Body(vertices, faces, torch.arange(len(faces)) % 2, torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.2, 0.9]]))
    body = fit_into_ball(body, 0.9)
    order = torch.randperm(len(faces), generator=torch.Generator().manual_seed(0))
    turned = Body(body.vertices, body.faces[order][:, [0, 2, 1]], body.face_palette[order], body.palette)
    cameras = turntable_cameras(4)
    light, background = cameras.c2w[..., :3, 2], torch.ones(1, 3)
    one, two = (render_bodies([b], cameras, 32, light=light, background=background) for b in (body, turned))
    torch.testing.assert_close(one.rgb, two.rgb, atol=0.02, rtol=0)
    assert (one.rgb - two.rgb).abs().mean() < 1e-4 and torch.equal(one.mask, two.mask)


def test_a_ball_covers_its_disc_and_lies_where_the_cameras_look():
    vertices, faces = FORMS["sphere"](None)
    body = Body(vertices * 0.5, faces, torch.zeros(len(faces)).long(), torch.tensor([[1.0, 0.0, 0.0]]))
    cameras = turntable_cameras(2)
    seen = render_bodies([body], cameras, 64, light=cameras.c2w[..., :3, 2], background=torch.ones(1, 3))
    distance = float(cameras.distance[0, 0])
    radius = 0.5 / np.sqrt(distance**2 - 0.25) / np.tan(np.deg2rad(20)) * 32  # px, of the cone that touches the ball
    assert float(seen.mask[0, 0].sum()) == pytest.approx(np.pi * radius**2, rel=0.02)
    torch.testing.assert_close(seen.mask[0, 0], seen.mask[0, 0].flip(1), atol=0.2, rtol=0)
    assert torch.equal(seen.rgb[0, 0, :, 0, 0], torch.ones(3))
    assert seen.rgb[0, 0, 0, 32, 32] > 0.9 and seen.rgb[0, 0, 1, 32, 32] == 0


def test_backgrounds_stand_out():
    faces = torch.tensor([[0, 1, 2]])
    for colour in kinds.COLOURS.values():
        body = Body(torch.eye(3), faces, torch.zeros(1).long(), torch.tensor([colour]))
        for seed in range(20):
            background = sample_background(main_colours(body), torch.Generator().manual_seed(seed))
            assert float((background - torch.tensor(colour)).norm()) > 0.3
        assert float((sample_background(main_colours(body), None) - torch.tensor(colour)).norm()) > 0.5


def test_no_mesh_is_in_the_repository():
    assert not list(Path(kinds.WORLD).rglob("*.npz"))


def test_depth_and_normals_are_a_ball_s(tmp_path):
    cameras = turntable_cameras(4, elevation_deg=20.0)
    seen = render_truth([parse("a red sphere")], cameras, 64, collection=Collection(tmp_path))
    origins, directions = camera_rays(cameras, 64)
    along = -(origins * directions).sum(-1)  # of the ray, to where it is nearest to the middle
    off = (origins.square().sum(-1) - along.square()).clamp(min=0)
    inside = (off < 0.8 * 0.81) & (seen.mask > 0.99)  # away from the outline, where a pixel spans much depth
    depth = along - (0.81 - off).clamp(min=0).sqrt()
    assert inside.sum() > 4 * 1000
    assert (seen.depth - depth)[inside].abs().max() < 0.02
    normal = (origins + depth[..., None] * directions) / 0.9
    cosine = (seen.normals.movedim(2, -1) * normal).sum(-1)[inside]
    assert torch.rad2deg(cosine.clamp(max=1).acos()).max() < 6  # facets of a fortieth of a turn
    outside = seen.mask == 0
    assert torch.isinf(seen.depth[outside]).all() and not seen.normals.movedim(2, -1)[outside].any()


def test_a_kind_s_meshes_can_be_asked_for_by_number(collection):
    caption = parse("a house")
    count = count_choices(caption, collection)
    assert count == len(read_table()["house"]) == 12 == count_choices(parse("a house next to a fox"), collection)
    bodies = [assemble_object(caption, collection, choice=choice) for choice in range(count)]
    assert len({len(body.vertices) for body in bodies}) > 6
    again = assemble_object(caption, collection, choice=count)
    assert torch.equal(again.vertices, bodies[0].vertices) and torch.equal(
        again.vertices, assemble_object(caption, collection).vertices
    )
    assert count_choices(parse("a blue cube"), collection) == 1


def test_a_collection_is_opened_once(tmp_path):
    (tmp_path / "meshes").mkdir()
    assert open_collection(tmp_path) is open_collection(str(tmp_path))


def test_light_leaves_no_side_darker_and_the_hue_alone(tmp_path):
    one = turntable_cameras(4)
    cameras = Cameras(**{name: value.expand(60, *value.shape[1:]) for name, value in vars(one).items()})
    generator = torch.Generator().manual_seed(3)
    views = render_truth(
        [parse("a blue sphere")] * 60, cameras, 16, collection=Collection(tmp_path), generator=generator
    )
    inside = (views.mask > 0.99).float()
    brightness = ((views.rgb[:, :, 2] * inside).sum((-1, -2)) / inside.sum((-1, -2))).mean(0)
    assert brightness.max() / brightness.min() < 1.06
    pixels = views.rgb.movedim(2, -1)[views.mask > 0.99]
    assert (pixels[:, 2] > 2 * pixels[:, 0]).all()  # blue as it was painted, its hue varied a little


def test_the_gallery_shows_every_kind_in_its_place():
    with Image.open(kinds.GALLERY) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=float)
    assert pixels.shape[1] == kinds.COLUMNS * kinds.TILE
    for noun in kinds.read_kinds():
        x, y = kinds.locate_picture(noun)
        tile = pixels[y : y + kinds.TILE, x : x + kinds.TILE]
        assert tile.shape == (kinds.TILE, kinds.TILE, 3)
        assert 0.01 < (tile.min(-1) < 235).mean() < 0.9, noun


def test_the_gallery_is_that_of_the_objects(collection):
    found = torch.from_numpy(np.array(Image.open(kinds.GALLERY).convert("RGB"))).float()
    assert (gallery.render_gallery(collection).float() - found).abs().mean() < 2  # JPEG's own error is about 1
