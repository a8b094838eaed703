"""What a setting is, and the settings of each kind of scene.

One declaration gives the check, the slider's range, the tooltip, the command-line flag and the reference's row.
Nested settings are named with a dot: ``scene.grid_size``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from psd.config.errors import PresetError, format_value

Range = tuple[float, float]  # from, to


def setting(
    default: Any,
    help: str,
    *,
    group: str,
    symbol: str = "",
    unit: str = "",
    live: bool = False,
    staged: bool = False,
    log: bool = False,
    step: float | None = None,
    **bounds: Any,
) -> Any:
    """A field with what the interface needs to know.

    ``live`` fields may change during a run by hand, ``staged`` ones by a stage of the run.
    """
    extra = {
        "group": group, "symbol": symbol, "unit": unit, "live": live, "staged": staged, "log": log, "step": step,
    }  # fmt: skip
    return Field(default, description=help, json_schema_extra=extra, **bounds)


def read_facts(info: FieldInfo) -> dict[str, Any]:
    """What `setting` noted of a field beside its bounds: group, symbol, unit, live, staged, log; empty for others."""
    return cast(dict[str, Any], info.json_schema_extra or {})


class Settings(BaseModel):
    """Frozen values; unknown keys, infinite numbers and truth values in place of numbers are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _undo_the_truths_of_yaml(cls, values: Any) -> Any:
        """YAML reads ``on`` as true, and true would count as 1; and ``off``, a choice here, as false."""
        if not isinstance(values, Mapping):
            return values
        found = dict(values)
        for name, info in cls.model_fields.items():
            value, kinds = found.get(name), get_args(info.annotation)
            if info.annotation in (int, float) and isinstance(value, bool):
                raise ValueError(f"{name}={value} must be a number")
            if float in kinds and any(isinstance(item, bool) for item in list_items(value)):
                raise ValueError(f"{name}={format_value(value)} must hold numbers, no truth values")
            if value is False and "off" in kinds:
                found[name] = "off"
        return found


def list_items(values: Any) -> list[Any]:
    """What a mapping or a list holds; nothing for any other value."""
    if isinstance(values, Mapping):
        return [*values.values()]
    return [*values] if isinstance(values, list | tuple) else []


class RadianceSettings(Settings):
    """Of a radiance field, whatever stores it."""

    start: ClassVar[str] = ""  # a field begins as a ball (`StartSettings`)
    # fmt: off
    ray_samples: int = setting(48, "Samples along a ray.", group="scene", ge=4, le=1024)
    density_lr: float = setting(0.2, "Adam step of the density.", group="scene", staged=True, log=True, gt=0, le=1)
    colour_lr: float = setting(0.1, "Adam step of the colours.", group="scene", staged=True, log=True, gt=0, le=1)
    blob_density: float = setting(10.0, "Height of the initial density blob.", group="scene", ge=0, le=100)
    background: Literal["plain", "network"] = setting(
        "plain", "Behind the object, where no random colour is: plain greys, or learned by direction.", group="scene"
    )
    weight_tv: float = setting(5.0, "Total variation of the field.", group="scene", staged=True, ge=0, le=1e4)
    weight_opacity: float = setting(10.0, "Mean opacity: empties fog.", group="scene", staged=True, ge=0, le=1e4)
    weight_entropy: float = setting(
        100.0, "Binary entropy of opacity: all or nothing.", group="scene", staged=True, ge=0, le=1e4
    )
    weight_orientation: Range = setting(
        (0.0, 0.0), "Normals that face away from the camera, at the start and at the end of a stage.", group="scene",
        staged=True,
    )
    # fmt: on

    @model_validator(mode="after")
    def _check_range(self) -> RadianceSettings:
        if not all(0 <= value <= 1e4 for value in self.weight_orientation):
            raise ValueError(f"weight_orientation={self.weight_orientation} must lie in [0, 10000]")
        return self

    def regulariser_weights(self, progress: float = 0.0) -> dict[str, float]:
        """Weight of each regulariser by its name, after a share ``progress`` of the stage."""
        first, last = self.weight_orientation
        return {
            "tv": self.weight_tv, "opacity": self.weight_opacity, "entropy": self.weight_entropy,
            "orientation": first + (last - first) * progress,
        }  # fmt: skip

    @property
    def has_backdrop(self) -> bool:
        """Whether the background is learned."""
        return self.background == "network"

    @property
    def uses_normals(self) -> bool:
        """Whether some regulariser looks at normals."""
        return max(self.weight_orientation) > 0


class GridScene(RadianceSettings):
    """A dense grid: the fastest field on a CPU."""

    kind: Literal["grid"]
    grid_size: int = setting(56, "Cells along an edge of the finest grid (grid only).", group="scene", ge=8, le=512)


class HashScene(RadianceSettings):
    """A multi-resolution hash grid with two small networks, as MVDream's."""

    kind: Literal["hash"]


class StartSettings(Settings):
    """Of a scene that can start from a mesh."""

    start: str = setting(
        "", "What the first scene starts from: a run's id, or on the command line a closed mesh; empty: nothing.",
        group="scene", staged=True, max_length=300,
    )  # fmt: skip


class SurfaceSettings(StartSettings):
    """Of a triangle surface: signed distances, offsets and colours on a tetrahedral grid."""

    # fmt: off
    kind: Literal["surface"]
    surface_cells: int = setting(
        32, "Cells along an edge of the box around the surface (surface only).", group="scene", ge=8, le=128
    )
    learns: Literal["both", "geometry", "texture"] = setting(
        "both", "What a surface learns: its shape, its colours or both.", group="scene", staged=True
    )
    shows: Literal["colours", "normals"] = setting(
        "colours", "What the prior sees of a surface.", group="scene", staged=True
    )
    shape_lr: float = setting(
        0.01, "Adam step of a surface's distances and offsets, in edges of a cell.", group="scene", staged=True,
        log=True, gt=0, le=1,
    )
    paint_lr: float = setting(
        0.05, "Adam step of a surface's colours.", group="scene", staged=True, log=True, gt=0, le=1
    )
    weight_consistency: float = setting(
        10.0, "Normals that differ at the two ends of an edge of a surface.", group="scene", staged=True, ge=0, le=1e6
    )
    weight_laplacian: float = setting(
        10.0, "Vertices of a surface off the mean of their neighbours.", group="scene", staged=True, ge=0, le=1e6
    )
    # fmt: on

    def regulariser_weights(self, progress: float = 0.0) -> dict[str, float]:
        """Weight of each regulariser by its name; the same all through a stage."""
        return {"consistency": self.weight_consistency, "laplacian": self.weight_laplacian}

    @property
    def has_backdrop(self) -> bool:
        """No: a surface has nothing behind it."""
        return False


class GaussianSettings(StartSettings):
    """Of 3D Gaussians, whose number stays."""

    # fmt: off
    kind: Literal["gaussians"]
    gaussians: int = setting(
        3000, "How many Gaussians (Gaussians only).", group="scene", log=True, ge=100, le=1_000_000
    )
    position_lr: float = setting(
        0.01, "Adam step of Gaussians' places, in world units.", group="scene", staged=True, log=True, gt=0, le=1
    )
    size_lr: float = setting(
        0.05, "Adam step of Gaussians' sizes, in natural logarithms, and of their rotations.", group="scene",
        staged=True, log=True, gt=0, le=1,
    )
    alpha_lr: float = setting(
        0.1, "Adam step of Gaussians' opacities, before a sigmoid.", group="scene", staged=True, log=True, gt=0, le=1
    )
    tint_lr: float = setting(
        0.1, "Adam step of Gaussians' colours, before a sigmoid.", group="scene", staged=True, log=True, gt=0, le=1
    )
    relocate_every: int = setting(
        10, "Steps between moves of faded Gaussians onto living ones.", group="scene", staged=True, unit="steps", ge=1,
        le=100_000,
    )
    weight_cover: float = setting(
        4.0, "Mean opacity of Gaussians' pictures: empties fog.", group="scene", staged=True, ge=0, le=1e4
    )
    weight_haze: float = setting(
        80.0, "Binary entropy of the same opacity: all or nothing.", group="scene", staged=True, ge=0, le=1e4
    )
    weight_alpha: float = setting(
        1.0, "Mean opacity of Gaussians, seen or hidden, and mean size: lets the useless fade.", group="scene",
        staged=True, ge=0, le=1e4,
    )
    # fmt: on

    def regulariser_weights(self, progress: float = 0.0) -> dict[str, float]:
        """Weight of each regulariser by its name; the same all through a stage."""
        return {"cover": self.weight_cover, "haze": self.weight_haze, "alpha": self.weight_alpha}

    @property
    def has_backdrop(self) -> bool:
        """No: Gaussians have nothing behind them."""
        return False


FieldSettings = GridScene | HashScene
AnyScene = FieldSettings | SurfaceSettings | GaussianSettings
SceneSettings = Annotated[AnyScene, Field(discriminator="kind")]
SCENES: Mapping[str, type[AnyScene]] = {
    "grid": GridScene, "hash": HashScene, "surface": SurfaceSettings, "gaussians": GaussianSettings,
}  # fmt: skip
FROM_MESH = tuple(kind for kind, model in SCENES.items() if issubclass(model, StartSettings))


SIZES = ("ray_samples", "grid_size", "surface_cells", "gaussians")  # settings of scenes that memory depends on


def list_rates(scene: SceneSettings) -> str:
    """The learning rates of a scene of this kind, for a sentence: ``scene.density_lr or scene.colour_lr``."""
    return " or ".join(f"scene.{name}" for name in type(scene).model_fields if name.endswith("_lr"))


def list_sizes(scene: SceneSettings) -> str:
    """Likewise what its memory depends on: ``scene.ray_samples or scene.grid_size``."""
    return " or ".join(f"scene.{name}" for name in SIZES if name in type(scene).model_fields)


def require_start(kind: str) -> None:
    """Raises `PresetError` where a first scene of this kind cannot start from a mesh."""
    if kind not in FROM_MESH:
        cure = f"take scene.kind={' or scene.kind='.join(FROM_MESH)}, and stages=[] where a field comes first"
        raise PresetError(f"scene.kind={kind} cannot start from a mesh: {cure}")


def check_succession(index: int, before: SceneSettings, after: SceneSettings) -> None:
    """Raises ValueError where the scene of stage ``index`` cannot go on from that of the stage before."""
    where = f"stages[{index}]"
    if index == 0 and after.kind != before.kind:
        raise ValueError(f"{where}: scene.kind={after.kind}: the first stage has the preset's own kind, {before.kind}")
    kept = getattr(before, "start", "")  # by a scene that goes on: the run's own start
    if index > 0 and isinstance(after, StartSettings) and after.start not in ("", kept):
        raise ValueError(f"{where}: scene.start={format_value(after.start)}: only the first stage starts from a run")
    if after.kind == before.kind:
        for name, info in type(after).model_fields.items():
            ours, theirs = getattr(after, name), getattr(before, name)
            if ours != theirs and not read_facts(info).get("staged", True):
                raise ValueError(
                    f"{where}: scene.{name}={format_value(ours)}, the stage before has {format_value(theirs)}: a scene"
                    " keeps it through its stages, so give both the same"
                )
    elif after.kind not in FROM_MESH:
        raise ValueError(
            f"{where}: scene.kind={after.kind} cannot start from the {before.kind} of the stage before: only a surface"
            " and gaussians can start from another scene"
        )


class SceneKind(Settings):
    """The choice between them, as a setting of its own."""

    kind: Literal["grid", "hash", "surface", "gaussians"] = setting(
        "grid", "Dense grid (CPU), multi-resolution hash grid, triangle surface or 3D Gaussians; another kind has its "
        "own defaults.", group="scene", staged=True,
    )  # fmt: skip


class Stage(Settings):
    """A part of a run; beside its share it names only what differs from the preset, in the preset's own keys."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    share: float = Field(gt=0, le=1, description="Of the run's `steps`; all shares sum to 1.")

    @property
    def changes(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values with changes; ``scene.<key>``, and each key of a mapping ``scene``, change one setting of the scene.

    Another kind of scene begins with that kind's defaults.
    """
    dotted = {name: value for name, value in changes.items() if str(name).startswith("scene.")}
    merged = {**values, **{name: value for name, value in changes.items() if name not in dotted}}
    scene = changes.get("scene", {})
    if not isinstance(scene, Mapping):
        return merged  # checked settings, or wrong: the preset's own check says so
    if changed := {**scene, **{name.removeprefix("scene."): value for name, value in dotted.items()}}:
        before = values.get("scene", {})
        same = isinstance(before, Mapping) and changed.get("kind", before.get("kind")) == before.get("kind")
        merged["scene"] = {**(before if same else {}), **changed}
    return merged
