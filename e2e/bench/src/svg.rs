//! Plots: bars of a case, and the growth of a measurement.

use std::fmt::Write as _;

use super::figure::{Figure, Line, Row, number};
use super::timeline::{Timeline, Whose};

const WIDTH: f64 = 900.0;
/// Left edge of the bars.
const LEFT: f64 = 380.0;
/// Height of a bar.
const HEIGHT: f64 = 12.0;
const OURS: &str = "#2a6fb0";
const PEER: &str = "#c25b2a";
const FLOOR: &str = "#8a8a8a";
const MESH: &str = "#5a9a4a";

/// Ours, peer and floor of each row, with their spread. Each row has its own scale, because
/// units differ.
pub fn bars(title: &str, rows: &[Row]) -> String {
    let mut body = String::new();
    let mut y = 50.0;
    for row in rows {
        let bars: Vec<(&str, Figure)> =
            [(OURS, Some(row.ours)), (PEER, row.peer), (FLOOR, row.floor)]
                .into_iter()
                .filter_map(|(colour, figure)| Some((colour, figure?)))
                .collect();
        let most = bars.iter().map(|(_, figure)| figure.max).fold(f64::MIN_POSITIVE, f64::max);
        let at = |value: f64| LEFT + (WIDTH - LEFT - 90.0) * value / most;
        let _ = writeln!(
            body,
            r#"<text x="{}" y="{}" text-anchor="end">{}</text>"#,
            LEFT - 8.0,
            y + 10.0,
            escaped(&row.what)
        );
        for (colour, figure) in bars {
            let (end, middle) = (at(figure.median), y + HEIGHT / 2.0);
            let _ = writeln!(
                body,
                r#"<rect x="{LEFT}" y="{y}" width="{:.1}" height="{HEIGHT}" fill="{colour}"/><line x1="{:.1}" x2="{:.1}" y1="{middle}" y2="{middle}" stroke="black"/><text x="{:.1}" y="{}">{} {}</text>"#,
                end - LEFT,
                at(figure.min),
                at(figure.max),
                at(figure.max) + 5.0,
                y + 10.0,
                number(figure.median),
                row.unit,
            );
            y += HEIGHT + 1.0;
        }
        y += 8.0;
    }
    let mut legend = String::new();
    for (x, colour, name) in
        [(LEFT, OURS, "ours"), (LEFT + 80.0, PEER, "peer"), (LEFT + 160.0, FLOOR, "floor")]
    {
        let _ = writeln!(
            legend,
            r#"<rect x="{x}" y="28" width="10" height="10" fill="{colour}"/><text x="{}" y="37">{name}</text>"#,
            x + 14.0
        );
    }
    document(title, y + 10.0, &(legend + &body))
}

/// Growth of a measurement. Both axes start at 0, so that linear growth looks linear.
pub fn line(line: &Line) -> String {
    const HEIGHT: f64 = 400.0;
    let most =
        |of: fn(&(f64, f64)) -> f64| line.points.iter().map(of).fold(f64::MIN_POSITIVE, f64::max);
    let (most_x, most_y) = (most(|point| point.0), most(|point| point.1));
    let at = |(x, y): (f64, f64)| {
        (70.0 + (WIDTH - 140.0) * x / most_x, HEIGHT - 40.0 - (HEIGHT - 90.0) * y / most_y)
    };
    let mut body = String::new();
    let path: Vec<String> =
        line.points.iter().map(|point| at(*point)).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(
        body,
        r#"<polyline points="{}" fill="none" stroke="{OURS}" stroke-width="2"/>"#,
        path.join(" ")
    );
    for point in &line.points {
        let (x, y) = at(*point);
        let _ = writeln!(
            body,
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="{OURS}"/><text x="{x:.1}" y="{:.1}" text-anchor="end">{} {}</text><text x="{x:.1}" y="{}" text-anchor="middle">{}</text>"#,
            y - 8.0,
            number(point.1),
            line.unit,
            HEIGHT - 22.0,
            number(point.0),
        );
    }
    let ((left, bottom), (right, top)) = (at((0.0, 0.0)), at((most_x, most_y)));
    let _ = writeln!(
        body,
        r#"<path d="M{left},{top} L{left},{bottom} L{right},{bottom}" fill="none" stroke="black"/>"#
    );
    let exponent = line.exponent().map(|found| format!(", to the power of {}", number(found)));
    let title = format!("{}, by {}{}", line.what, line.with, exponent.unwrap_or_default());
    document(&title, HEIGHT, &body)
}

/// A bar for each span, in its place on one axis.
pub fn timeline(timeline: &Timeline) -> String {
    let end = timeline.end().max(f64::MIN_POSITIVE);
    let at = |time: f64| LEFT + (WIDTH - LEFT - 70.0) * time / end;
    let mut body = String::new();
    for (index, whose) in (0..).map(f64::from).zip(Whose::ALL) {
        let x = LEFT + index * 110.0;
        let _ = writeln!(
            body,
            r#"<rect x="{x}" y="28" width="10" height="10" fill="{}"/><text x="{}" y="37">{}</text>"#,
            colour(whose),
            x + 14.0,
            whose.name(),
        );
    }
    let mut y = 50.0;
    for span in &timeline.spans {
        let (begin, end) = (at(span.begin), at(span.end));
        let _ = writeln!(
            body,
            r#"<text x="{}" y="{}" text-anchor="end">{}</text><rect x="{begin:.1}" y="{y}" width="{:.1}" height="{HEIGHT}" fill="{}"/><text x="{:.1}" y="{}">{} ms</text>"#,
            LEFT - 8.0,
            y + 10.0,
            escaped(span.what),
            (end - begin).max(1.0),
            colour(span.whose),
            end + 5.0,
            y + 10.0,
            number(span.end - span.begin),
        );
        y += HEIGHT + 6.0;
    }
    let title = format!("{}: {} ms in all", timeline.title, number(timeline.end()));
    document(&title, y + 10.0, &body)
}

fn colour(whose: Whose) -> &'static str {
    match whose {
        Whose::Ours => OURS,
        Whose::Envoy => PEER,
        Whose::Kubernetes => FLOOR,
        Whose::Mesh => MESH,
    }
}

fn document(title: &str, height: f64, body: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"10\" y=\"20\" font-size=\"15\">{}</text>\n{body}</svg>\n",
        escaped(title)
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
