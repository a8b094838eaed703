"""What the charts do in the browser: a line under the pointer on all of them at once, with the values there; a click
looks back to that step; all of them as one picture."""

from psd.ui.markup.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH

HOVER = f"""
const LEFT = {LEFT}, ACROSS = {WIDTH - LEFT - RIGHT}, TOP = {TOP}, FLOOR = {HEIGHT - BOTTOM}
const charts = () => [...element.querySelectorAll('svg.lines')]
const stepAt = (svg, event) => {{
  const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * {WIDTH}
  return Math.round(Math.min(1, Math.max(0, (x - LEFT) / ACROSS)) * svg.dataset.steps)
}}
const valueAt = (svg, line, x) => {{  // the newest point at or before it, as the chart draws it
  const points = line.getAttribute('points').split(' ').filter(Boolean).map(point => point.split(',').map(Number))
  const seen = points.filter(point => point[0] <= x + .5).at(-1)
  if (!seen) return '–'
  const share = (FLOOR - seen[1]) / (FLOOR - TOP)
  return (+svg.dataset.low + share * (svg.dataset.high - svg.dataset.low)).toPrecision(3)
}}
element.addEventListener('pointermove', event => {{
  const over = event.target.closest?.('svg.lines')
  if (!over) return leave()
  const step = stepAt(over, event)
  for (const svg of charts()) {{
    const x = LEFT + step / svg.dataset.steps * ACROSS, cross = svg.querySelector('.cross')
    cross.setAttribute('x1', x); cross.setAttribute('x2', x); cross.classList.add('on')
    const at = [...svg.parentElement.querySelectorAll('.legend .at')]
    ;[...svg.querySelectorAll('polyline')].forEach((line, i) => {{
      if (at[i]) at[i].textContent = `step ${{step}}: ${{valueAt(svg, line, x)}}`
    }})
  }}
}})
const leave = () => {{
  for (const cross of element.querySelectorAll('.cross.on')) cross.classList.remove('on')
  for (const at of element.querySelectorAll('.legend .at')) at.textContent = ''
}}
element.addEventListener('pointerleave', leave)
element.addEventListener('click', event => {{
  const svg = event.target.closest?.('svg.lines')
  if (svg) trigger('click', {{step: stepAt(svg, event)}})
}})
"""

# Every chart with its title, two beside each other, on the ground of the page.
SAVE_PNG = f"""async () => {{
  const figures = [...document.querySelectorAll('#charts figure:has(svg.lines)')]
  const wide = {WIDTH}, tall = {HEIGHT} + 30, canvas = document.createElement('canvas')
  canvas.width = 2 * wide * 2; canvas.height = Math.ceil(figures.length / 2) * tall * 2
  const pen = canvas.getContext('2d'), page = getComputedStyle(document.body)
  pen.scale(2, 2); pen.fillStyle = page.backgroundColor; pen.fillRect(0, 0, canvas.width, canvas.height)
  for (const [i, figure] of figures.entries()) {{
    const svg = figure.querySelector('svg.lines'), copy = svg.cloneNode(true)
    copy.setAttribute('xmlns', 'http://www.w3.org/2000/svg')
    copy.setAttribute('width', wide); copy.setAttribute('height', {HEIGHT})
    const drawn = [...svg.querySelectorAll('*')]
    ;[...copy.querySelectorAll('*')].forEach((part, k) => {{
      const style = getComputedStyle(drawn[k])
      for (const name of ['fill', 'stroke', 'stroke-width', 'stroke-dasharray', 'font', 'opacity', 'visibility'])
        part.style.setProperty(name, style.getPropertyValue(name))
    }})
    const picture = new Image()
    picture.src = 'data:image/svg+xml,' + encodeURIComponent(new XMLSerializer().serializeToString(copy))
    await picture.decode()
    const x = i % 2 * wide, y = Math.floor(i / 2) * tall
    pen.drawImage(picture, x, y + 26)
    pen.fillStyle = page.color; pen.font = '600 14px sans-serif'
    pen.fillText(figure.querySelector('figcaption').innerText, x + 10, y + 20)
  }}
  const href = canvas.toDataURL('image/png')
  Object.assign(document.createElement('a'), {{href, download: 'curves.png'}}).click()
}}"""
SAVE_CSV = """(text) => {
  if (!text) return
  const href = URL.createObjectURL(new Blob([text], {type: 'text/csv'}))
  Object.assign(document.createElement('a'), {href, download: 'curves.csv'}).click()
  setTimeout(() => URL.revokeObjectURL(href), 1000)
}"""
