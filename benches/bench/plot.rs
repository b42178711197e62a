//! Log-log plots as SVG. The output is reproducible: the same points produce the same bytes.

use std::fmt::Write;
use std::path::Path;

pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// One pair of axes with its series.
pub struct Panel {
    pub title: String,
    pub x: String,
    pub y: String,
    pub series: Vec<Series>,
    /// Lines of text below the axes.
    pub notes: Vec<String>,
}

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 400.0;
// The box of the axes in a panel.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 440.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 270.0;

/// Colours that are distinguishable on a light and a dark background, also with colour blindness.
const STYLE: &str = "
text { font: 12px sans-serif; fill: #1f2328 }
.ground { fill: #ffffff }
.title { font-weight: bold }
.grid { stroke: #d0d7de; stroke-width: 1 }
.frame { stroke: #59636e; stroke-width: 1; fill: none }
.s0 { stroke: #0969da; fill: #0969da }
.s1 { stroke: #bc4c00; fill: #bc4c00 }
.s2 { stroke: #1a7f37; fill: #1a7f37 }
.s3 { stroke: #8250df; fill: #8250df }
.line { fill: none; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.ground { fill: #0d1117 }
.grid { stroke: #30363d }
.frame { stroke: #9198a1 }
.s0 { stroke: #58a6ff; fill: #58a6ff }
.s1 { stroke: #f0883e; fill: #f0883e }
.s2 { stroke: #3fb950; fill: #3fb950 }
.s3 { stroke: #bc8cff; fill: #bc8cff }
.line { fill: none }
}
";

/// A logarithmic axis from 10^`low` to 10^`high`, drawn between the coordinates `from` and `to`.
struct Axis {
    low: i32,
    high: i32,
    from: f64,
    to: f64,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let logs: Vec<_> = values.map(|value| value.max(1e-9).log10()).collect();
        let low = logs.iter().copied().fold(f64::MAX, f64::min).floor() as i32;
        let high = logs.iter().copied().fold(f64::MIN, f64::max).ceil() as i32;
        Self {
            low,
            high: high.max(low + 1),
            from,
            to,
        }
    }

    fn at(&self, value: f64) -> f64 {
        let part =
            (value.max(1e-9).log10() - f64::from(self.low)) / f64::from(self.high - self.low);
        self.from + part * (self.to - self.from)
    }
}

/// The label of a power of ten.
fn power(of: i32) -> String {
    match of {
        -3..0 => format!("{:.*}", of.unsigned_abs() as usize, 10_f64.powi(of)),
        0..4 => format!("{:.0}", 10_f64.powi(of)),
        _ => format!("10^{of}"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('`', "")
}

fn draw(panel: &Panel) -> String {
    let points = || panel.series.iter().flat_map(|series| &series.points);
    let x = Axis::new(points().map(|point| point.0), LEFT, RIGHT);
    let y = Axis::new(points().map(|point| point.1), BOTTOM, TOP);
    let mut svg = String::new();
    let text = |at: (f64, f64), anchor: &str, class: &str, words: &str| {
        let (x, y) = at;
        let words = escaped(words);
        format!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" class=\"{class}\">{words}</text>\n"
        )
    };
    svg += &text((LEFT, 24.0), "start", "title", &panel.title);
    for power_of in x.low..=x.high {
        let at = x.at(10_f64.powi(power_of));
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{BOTTOM}\"/>"
        );
        svg += &text((at, BOTTOM + 16.0), "middle", "", &power(power_of));
    }
    for power_of in y.low..=y.high {
        let at = y.at(10_f64.powi(power_of));
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{RIGHT}\" y2=\"{at:.1}\"/>"
        );
        svg += &text((LEFT - 6.0, at + 4.0), "end", "", &power(power_of));
    }
    let _ = writeln!(
        svg,
        "<rect class=\"frame\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{}\" height=\"{}\"/>",
        RIGHT - LEFT,
        BOTTOM - TOP
    );
    svg += &text(
        ((LEFT + RIGHT) / 2.0, BOTTOM + 34.0),
        "middle",
        "",
        &panel.x,
    );
    let _ = writeln!(
        svg,
        "<text transform=\"translate(16 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        f64::midpoint(TOP, BOTTOM),
        escaped(&panel.y)
    );
    for (place, series) in panel.series.iter().enumerate() {
        let class = place % 4;
        let path: Vec<_> = series
            .points
            .iter()
            .map(|point| format!("{:.1},{:.1}", x.at(point.0), y.at(point.1)))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline class=\"s{class} line\" points=\"{}\"/>",
            path.join(" ")
        );
        for point in &path {
            let (x, y) = point.split_once(',').unwrap();
            let _ = writeln!(
                svg,
                "<circle class=\"s{class}\" cx=\"{x}\" cy=\"{y}\" r=\"3\"/>"
            );
        }
        let at = BOTTOM + 54.0 + place as f64 * 16.0;
        let _ = writeln!(
            svg,
            "<circle class=\"s{class}\" cx=\"{}\" cy=\"{:.1}\" r=\"4\"/>",
            LEFT + 4.0,
            at - 4.0
        );
        svg += &text((LEFT + 14.0, at), "start", "", &series.name);
    }
    for (place, note) in panel.notes.iter().enumerate() {
        let line = panel.series.len() + place;
        svg += &text(
            (LEFT, BOTTOM + 58.0 + line as f64 * 16.0),
            "start",
            "",
            note,
        );
    }
    svg
}

/// Writes a file with the panels side by side.
pub fn write(file: &Path, panels: &[Panel]) {
    let width = WIDTH * panels.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{HEIGHT}\" \
         viewBox=\"0 0 {width} {HEIGHT}\">\n<style>{STYLE}</style>\n\
         <rect class=\"ground\" width=\"{width}\" height=\"{HEIGHT}\"/>\n"
    );
    for (place, panel) in panels.iter().enumerate() {
        let left = WIDTH * place as f64;
        let _ = write!(
            svg,
            "<g transform=\"translate({left} 0)\">\n{}</g>\n",
            draw(panel)
        );
    }
    svg += "</svg>\n";
    std::fs::write(file, svg).unwrap();
}
