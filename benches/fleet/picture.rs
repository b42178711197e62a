//! Draws the result of the simulation as SVG: cumulative failed starts over time.

use std::fmt::Write;

/// The title, and for each method its name and the cumulative sums.
pub type Panel = (&'static str, Vec<(&'static str, Vec<usize>)>);

const STYLE: &str = "text{font:12px sans-serif;fill:#1f2328}.ground{fill:#fff}.title{font-weight:bold}\
.grid{stroke:#d0d7de}.wave{fill:#9a670022}.s0{stroke:#cf222e;fill:#cf222e}.s1{stroke:#bc4c00;fill:#bc4c00;stroke-dasharray:7 5}\
.s2{stroke:#1a7f37;fill:#1a7f37}path{fill:none!important;stroke-width:2}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.ground{fill:#0d1117}.grid{stroke:#30363d}\
.wave{fill:#d2992233}.s0{stroke:#ff7b72;fill:#ff7b72}.s1{stroke:#f0883e;fill:#f0883e}\
.s2{stroke:#3fb950;fill:#3fb950}}";

const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 420.0;
const TOP: f64 = 60.0;
const BOTTOM: f64 = 250.0;

/// Draws the panels side by side.
pub fn draw(panels: &[Panel], hours: f64, wave: (f64, f64), restart: f64) -> String {
    let whole = WIDTH * panels.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {whole} {HEIGHT}\" width=\"{whole}\" \
         height=\"{HEIGHT}\" role=\"img\">\n<title>Failed guest starts in a fleet of 10,000 nodes\
         </title>\n<style>{STYLE}</style>\n<rect class=\"ground\" width=\"{whole}\" height=\"{HEIGHT}\" \
         rx=\"8\"/>\n"
    );
    let sums = panels.iter().flat_map(|(_, lines)| lines);
    let most = sums.filter_map(|(_, sums)| sums.last()).max();
    let top = round_up(most.copied().unwrap_or(1));
    for (number, (title, lines)) in panels.iter().enumerate() {
        let left = WIDTH * number as f64;
        let _ = writeln!(svg, "<g transform=\"translate({left} 0)\">");
        panel(&mut svg, title, lines, top, hours, wave, restart);
        let _ = writeln!(svg, "</g>");
    }
    svg.push_str("</svg>\n");
    svg
}

fn panel(
    svg: &mut String,
    title: &str,
    lines: &[(&str, Vec<usize>)],
    top: usize,
    hours: f64,
    wave: (f64, f64),
    restart: f64,
) {
    let x = |hour: f64| LEFT + hour / hours * (RIGHT - LEFT);
    let y = |sum: usize| BOTTOM - sum as f64 / top as f64 * (BOTTOM - TOP);
    let _ = writeln!(
        svg,
        "<text class=\"title\" x=\"{LEFT}\" y=\"24\">{title}</text>"
    );
    let _ = writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"44\">failed starts, cumulative</text>"
    );
    let _ = writeln!(
        svg,
        "<rect class=\"wave\" x=\"{:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{}\"/>",
        x(wave.0),
        x(wave.1) - x(wave.0),
        BOTTOM - TOP
    );
    for part in 0..=4 {
        let sum = top / 4 * part;
        let at = y(sum);
        let _ = writeln!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{sum}</text>",
            LEFT - 6.0,
            at + 4.0
        );
    }
    let marks = [
        (0.0, "0 h"),
        (wave.0, "upgrade"),
        (restart, "pods restarted"),
        (hours, "14 h"),
    ];
    for (hour, text) in marks {
        let at = x(hour);
        let _ = writeln!(
            svg,
            "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{text}</text>",
            BOTTOM + 18.0
        );
    }
    for (number, (name, sums)) in lines.iter().enumerate() {
        let mut path = format!("M{LEFT} {BOTTOM}");
        for (bin, sum) in sums.iter().enumerate() {
            let hour = (bin + 1) as f64 / sums.len() as f64 * hours;
            let _ = write!(path, "L{:.1} {:.1}", x(hour), y(*sum));
        }
        let _ = writeln!(svg, "<path class=\"s{number}\" d=\"{path}\"/>");
        let at = LEFT + 120.0 * number as f64;
        let low = BOTTOM + 40.0;
        let _ = writeln!(
            svg,
            "<rect class=\"s{number}\" x=\"{at}\" y=\"{}\" width=\"10\" height=\"3\"/>\
             <text x=\"{}\" y=\"{low}\">{name}</text>",
            low - 6.0,
            at + 14.0
        );
    }
}

/// The next round number that is divisible by four, for the lines of the grid.
fn round_up(most: usize) -> usize {
    let mut step = 4;
    while step < most {
        step = match step.to_string().as_bytes()[0] {
            b'4' => step * 2,
            b'8' => step * 5 / 2,
            _ => step * 2,
        };
    }
    step
}
