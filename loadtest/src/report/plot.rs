//! Plots as SVG, by kuva (docs/adr/0020): nothing that runs, nothing that is fetched.

use kuva::backend::svg::SvgBackend;
use kuva::plot::LinePlot;
use kuva::render::layout::Layout;
use kuva::render::plots::Plot;
use kuva::render::render::render_multiple;

/// Colours that stay apart for colour-blind readers (Wong, Nature Methods 2011), in black and white too.
const COLOURS: [&str; 7] = [
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000",
];
/// Least value on a logarithmic axis.
const LOG_MIN: f64 = 1e-7;

/// A line in a plot.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// What stands around the lines.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Frame<'a> {
    pub(crate) title: &'a str,
    pub(crate) x: &'a str,
    pub(crate) y: &'a str,
    pub(crate) log_x: bool,
    pub(crate) log_y: bool,
}

/// The plot as an SVG element; nothing when there is nothing to draw.
pub(crate) fn draw(frame: Frame<'_>, lines: Vec<Line>) -> Option<String> {
    let shown = |line: &Line| !line.points.is_empty();
    let plots: Vec<Plot> = lines
        .into_iter()
        .filter(shown)
        .zip(COLOURS.iter().cycle())
        .map(|(line, colour)| {
            let points = line
                .points
                .into_iter()
                .filter(|(x, y)| x.is_finite() && y.is_finite());
            let points = points.map(|(x, y)| {
                let x = if frame.log_x { x.max(LOG_MIN) } else { x };
                let y = if frame.log_y { y.max(LOG_MIN) } else { y };
                (x, y)
            });
            let plot = LinePlot::new()
                .with_data(points.collect::<Vec<_>>())
                .with_color(*colour)
                .with_stroke_width(2.0)
                .with_legend(line.name);
            Plot::Line(plot)
        })
        .collect();
    if plots.is_empty() {
        return None;
    }
    let mut layout = Layout::auto_from_plots(&plots)
        .with_title(frame.title)
        .with_x_label(frame.x)
        .with_y_label(frame.y)
        .with_width(820.0)
        .with_height(360.0);
    if frame.log_x {
        layout = layout.with_log_x();
    }
    if frame.log_y {
        layout = layout.with_log_y();
    } else {
        layout = layout.with_y_axis_min(0.0);
    }
    let svg = SvgBackend::new().render_scene(&render_multiple(plots, layout));
    // Inside HTML an XML declaration is only a comment out of place.
    let start = svg.find("<svg").unwrap_or(0);
    Some(svg[start..].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(points: &[(f64, f64)]) -> Line {
        Line {
            name: "a < b".to_owned(),
            points: points.to_vec(),
        }
    }

    #[test]
    fn every_line_is_drawn() {
        let frame = Frame {
            title: "t",
            log_y: true,
            ..Frame::default()
        };
        let svg = draw(
            frame,
            vec![
                line(&[(1.0, 0.0), (2.0, 5.0)]),
                line(&[(1.0, 3.0), (2.0, 1.0)]),
            ],
        )
        .expect("drawn");
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        let lower = svg.to_lowercase();
        assert!(
            COLOURS[..2]
                .iter()
                .all(|colour| lower.contains(&colour.to_lowercase()))
        );
        assert!(svg.contains("a &lt; b"), "names are escaped");
    }

    #[test]
    fn odd_numbers_do_no_harm() {
        assert!(draw(Frame::default(), vec![line(&[])]).is_none());
        let odd = [(0.0, f64::NAN), (1.0, f64::INFINITY), (2.0, 0.0)];
        let frame = Frame {
            log_x: true,
            log_y: true,
            ..Frame::default()
        };
        let svg = draw(frame, vec![line(&odd)]).expect("drawn");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        assert!(draw(Frame::default(), vec![line(&[(3.0, 3.0)])]).is_some());
    }
}
