//! Plots as SVG: curves over steps, and points with spreads. Pure text; no fonts are embedded.

use std::fmt::Write as _;

/// A curve in a line plot.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Name in the legend.
    pub name: String,
    /// (x, y) in data coordinates, ascending by x; points that are not finite are skipped.
    pub points: Vec<(f64, f64)>,
}

/// A point with error bars in both directions.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// Name in the legend.
    pub name: String,
    /// (x, y) in data coordinates.
    pub at: (f64, f64),
    /// Half the length of the horizontal and the vertical error bar; 0 draws none.
    pub spread: (f64, f64),
}

/// Title, description and axis labels of a plot.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    /// Title, also the SVG's accessible name.
    pub title: &'a str,
    /// The SVG's accessible description.
    pub description: &'a str,
    /// Label of the horizontal axis, with its unit.
    pub x: &'a str,
    /// Label of the vertical axis, with its unit.
    pub y: &'a str,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 56.0;
/// A palette that colour-blind people can tell apart (Okabe and Ito), used cyclically; marks also
/// differ in shape.
const COLOURS: [&str; 8] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f", "#000000",
];

/// Draws `lines` as an SVG document.
pub fn lines(labels: &Labels<'_>, lines: &[Line]) -> String {
    let points = lines.iter().flat_map(|line| line.points.iter().copied());
    let mut canvas = Canvas::new(labels, Frame::enclosing(points));
    for (index, line) in lines.iter().enumerate() {
        canvas.line(index, line);
    }
    canvas.finish()
}

/// Draws `marks` with their error bars as an SVG document.
pub fn marks(labels: &Labels<'_>, marks: &[Mark]) -> String {
    let corners = marks.iter().flat_map(|mark| {
        let ((x, y), (dx, dy)) = (mark.at, mark.spread);
        [(x - dx, y - dy), (x + dx, y + dy)]
    });
    let mut canvas = Canvas::new(labels, Frame::enclosing(corners).with_margin());
    for (index, mark) in marks.iter().enumerate() {
        canvas.mark(index, mark);
    }
    canvas.finish()
}

/// The visible range of data coordinates.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Frame {
    x: (f64, f64),
    y: (f64, f64),
}

impl Frame {
    /// The smallest frame around the finite points; a unit square if there are none.
    fn enclosing(points: impl Iterator<Item = (f64, f64)>) -> Self {
        let none = (f64::INFINITY, f64::NEG_INFINITY);
        let (mut x, mut y) = (none, none);
        for (px, py) in points.filter(|(px, py)| px.is_finite() && py.is_finite()) {
            x = (x.0.min(px), x.1.max(px));
            y = (y.0.min(py), y.1.max(py));
        }
        let widen = |(from, to): (f64, f64)| {
            if from < to {
                (from, to)
            } else if from == to {
                (from - 0.5, to + 0.5)
            } else {
                (0.0, 1.0)
            }
        };
        Self {
            x: widen(x),
            y: widen(y),
        }
    }

    /// Adds a margin so that no mark lies on the border.
    fn with_margin(self) -> Self {
        let wide = |(a, b): (f64, f64)| (a - 0.07 * (b - a), b + 0.07 * (b - a));
        Self {
            x: wide(self.x),
            y: wide(self.y),
        }
    }

    /// From data coordinates to pixels.
    fn to_pixels(self, (x, y): (f64, f64)) -> (f64, f64) {
        let fraction = |v: f64, (a, b): (f64, f64)| (v - a) / (b - a);
        (
            LEFT + fraction(x, self.x) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - fraction(y, self.y) * (HEIGHT - TOP - BOTTOM),
        )
    }
}

/// About five round numbers within a range, in steps of 1, 2 or 5 times a power of ten.
fn ticks((from, to): (f64, f64)) -> Vec<f64> {
    let rough = (to - from) / 5.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= rough)
        .unwrap_or(rough);
    let first = (from / step).ceil() as i64;
    let last = (to / step).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

fn number(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    match text {
        "-0" | "" => "0".into(),
        other => other.into(),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

struct Canvas {
    svg: String,
    frame: Frame,
}

impl Canvas {
    fn new(labels: &Labels<'_>, frame: Frame) -> Self {
        let (title, description) = (escape(labels.title), escape(labels.description));
        let mut canvas = Self {
            svg: format!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
                 aria-labelledby=\"title description\" font-family=\"sans-serif\" font-size=\"12\">\n\
                 <title id=\"title\">{title}</title>\n<desc id=\"description\">{description}</desc>\n\
                 <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n"
            ),
            frame,
        };
        canvas.text((LEFT, 24.0), "start", "font-size=\"15\"", labels.title);
        canvas.axes(labels);
        canvas
    }

    fn push(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _infallible = self.svg.write_fmt(element);
        self.svg.push('\n');
    }

    fn text(&mut self, (x, y): (f64, f64), anchor: &str, attributes: &str, text: &str) {
        let text = escape(text);
        self.push(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"#222222\" {attributes}>{text}</text>"
        ));
    }

    fn stroke(&mut self, from: (f64, f64), to: (f64, f64), colour: &str) {
        self.push(format_args!(
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"/>",
            from.0, from.1, to.0, to.1
        ));
    }

    fn axes(&mut self, labels: &Labels<'_>) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for tick in ticks(self.frame.x) {
            let (x, _) = self.frame.to_pixels((tick, self.frame.y.0));
            self.stroke((x, TOP), (x, bottom), "#e5e5e5");
            self.text((x, bottom + 16.0), "middle", "", &number(tick));
        }
        for tick in ticks(self.frame.y) {
            let (_, y) = self.frame.to_pixels((self.frame.x.0, tick));
            self.stroke((LEFT, y), (right, y), "#e5e5e5");
            self.text((LEFT - 6.0, y + 4.0), "end", "", &number(tick));
        }
        self.stroke((LEFT, bottom), (right, bottom), "#222222");
        self.stroke((LEFT, TOP), (LEFT, bottom), "#222222");
        let middle = (LEFT + right) / 2.0;
        self.text((middle, HEIGHT - 16.0), "middle", "", labels.x);
        let rotated = format!("transform=\"rotate(-90 18 {:.1})\"", (TOP + bottom) / 2.0);
        self.text((18.0, (TOP + bottom) / 2.0), "middle", &rotated, labels.y);
    }

    fn legend(&mut self, index: usize, name: &str, symbol: &str) {
        let y = TOP + 8.0 + 20.0 * index as f64;
        let x = WIDTH - RIGHT + 16.0;
        self.push(format_args!(
            "<g transform=\"translate({x:.1} {y:.1})\">{symbol}</g>"
        ));
        self.text((x + 14.0, y + 4.0), "start", "", name);
    }

    fn line(&mut self, index: usize, line: &Line) {
        let colour = COLOURS[index % COLOURS.len()];
        let mut path = String::new();
        for point in line
            .points
            .iter()
            .filter(|(x, y)| x.is_finite() && y.is_finite())
        {
            let (x, y) = self.frame.to_pixels(*point);
            let command = if path.is_empty() { 'M' } else { 'L' };
            let _infallible = write!(path, "{command}{x:.1} {y:.1}");
        }
        self.push(format_args!(
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>"
        ));
        let symbol = format!("<path d=\"M-8 0L8 0\" stroke=\"{colour}\" stroke-width=\"2.4\"/>");
        self.legend(index, &line.name, &symbol);
    }

    fn mark(&mut self, index: usize, mark: &Mark) {
        let colour = COLOURS[index % COLOURS.len()];
        let symbol = symbol(index, colour);
        let ((x, y), (dx, dy)) = (mark.at, mark.spread);
        if x.is_finite() && y.is_finite() {
            if dx > 0.0 {
                let ends = [(x - dx, y), (x + dx, y)].map(|p| self.frame.to_pixels(p));
                self.stroke(ends[0], ends[1], colour);
            }
            if dy > 0.0 {
                let ends = [(x, y - dy), (x, y + dy)].map(|p| self.frame.to_pixels(p));
                self.stroke(ends[0], ends[1], colour);
            }
            let (px, py) = self.frame.to_pixels(mark.at);
            let name = escape(&mark.name);
            self.push(format_args!(
                "<g transform=\"translate({px:.1} {py:.1})\"><title>{name}</title>{symbol}</g>"
            ));
        }
        self.legend(index, &mark.name, &symbol);
    }

    fn finish(mut self) -> String {
        self.svg.push_str("</svg>\n");
        self.svg
    }
}

/// A circle, a square, a triangle or a diamond.
fn symbol(index: usize, colour: &str) -> String {
    match index / 2 % 4 {
        0 => format!("<circle r=\"5\" fill=\"{colour}\"/>"),
        1 => format!("<rect x=\"-5\" y=\"-5\" width=\"10\" height=\"10\" fill=\"{colour}\"/>"),
        2 => format!("<path d=\"M0 -6L6 5L-6 5Z\" fill=\"{colour}\"/>"),
        _ => format!("<path d=\"M0 -7L6 0L0 7L-6 0Z\" fill=\"{colour}\"/>"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABELS: Labels<'static> = Labels {
        title: "Losses <of> a run",
        description: "Falling.",
        x: "step",
        y: "loss",
    };

    fn line(points: &[(f64, f64)]) -> Line {
        Line {
            name: "total & parts".into(),
            points: points.to_vec(),
        }
    }

    #[test]
    fn ticks_are_round_and_within() {
        assert_eq!(ticks((0.0, 33.0)), [0.0, 10.0, 20.0, 30.0]);
        assert_eq!(ticks((-0.1, 0.1)).len(), 5);
        assert_eq!(number(0.30000000000000004), "0.3");
        assert_eq!(number(-0.0), "0");
    }

    #[test]
    fn a_plot_has_title_axes_legend_and_every_point() {
        let svg = lines(&LABELS, &[line(&[(0.0, 2.0), (10.0, 1.0), (20.0, 0.5)])]);
        for part in [
            "Losses &lt;of&gt; a run",
            "<desc id=\"description\">Falling.",
            ">step</text>",
            ">loss</text>",
            "total &amp; parts",
        ] {
            assert!(svg.contains(part), "{part} is missing in {svg}");
        }
        let path = svg.split("<path d=\"").nth(1).unwrap();
        assert_eq!(path.split('"').next().unwrap().matches('L').count(), 2);
        assert_eq!(svg.matches("<svg").count(), 1);
        assert!(svg.ends_with("</svg>\n"));
    }

    #[test]
    fn odd_values_break_nothing() {
        for points in [vec![], vec![(1.0, 1.0)], vec![(0.0, f64::NAN), (1.0, 2.0)]] {
            let svg = lines(&LABELS, &[line(&points)]);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }

    #[test]
    fn marks_carry_their_spread() {
        let mark = |spread| Mark {
            name: "trace".into(),
            at: (0.1, 0.9),
            spread,
        };
        let bare = marks(&LABELS, &[mark((0.0, 0.0))]);
        let barred = marks(&LABELS, &[mark((0.02, 0.05))]);
        let strokes = |svg: &str| svg.matches("stroke=\"#0072b2\"").count();
        assert_eq!((strokes(&bare), strokes(&barred)), (0, 2));
    }
}
