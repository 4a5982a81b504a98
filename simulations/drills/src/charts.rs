//! The charts of a report, as SVG.

use std::time::Duration;

use plotters::coord::ranged1d::ValueFormatter;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::held::Held;
use crate::plan::How;
use crate::record::{Fault, Record};
use crate::tally::{Bins, Spread};
use crate::verdict::shown;

/// A chart could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("a chart of the report could not be drawn: {0}")]
pub struct ReportError(String);

pub(crate) type Drawn = Result<String, ReportError>;

const WIDTH: u32 = 1100;
const HEIGHT: u32 = 260;
/// Room for the names on the left, the same in every chart: moments are above each other.
const LEFT: u32 = 80;
const KILLED: RGBColor = RGBColor(214, 69, 65);
const HUNG: RGBColor = RGBColor(230, 145, 30);
const LOST: RGBColor = RGBColor(142, 68, 173);
const SLOW: RGBColor = RGBColor(140, 110, 80);
const FULL: RGBColor = RGBColor(60, 150, 150);
const LYING: RGBColor = RGBColor(190, 60, 130);
const LOCKED: RGBColor = RGBColor(70, 90, 160);
pub(crate) const UNUSED: RGBColor = RGBColor(170, 176, 184);
pub(crate) const BAD: RGBColor = RGBColor(192, 0, 0);
pub(crate) const MEMBERS: [RGBColor; 4] =
    [RGBColor(46, 117, 182), RGBColor(84, 160, 84), RGBColor(200, 150, 40), RGBColor(120, 90, 160)];

pub(crate) fn color(how: How) -> RGBColor {
    match how {
        How::Killed => KILLED,
        How::Hung => HUNG,
        How::Lost => LOST,
        How::Slow => SLOW,
        How::Full => FULL,
        How::Lying => LYING,
        How::Locked => LOCKED,
    }
}

pub(crate) fn member_color(member: usize) -> RGBColor {
    MEMBERS.get(member % MEMBERS.len()).copied().unwrap_or(BLACK)
}

fn not_drawn(error: impl std::fmt::Display) -> ReportError {
    ReportError(error.to_string())
}

/// A fault in a chart: when, in seconds, and in which color.
struct Band {
    member: usize,
    from: f64,
    to: f64,
    color: RGBColor,
}

/// What every chart is drawn from.
pub(crate) struct Scene<'a> {
    record: &'a Record,
    pub(crate) bins: Bins,
    bands: Vec<Band>,
    /// The end of the time axis.
    end: f64,
}

/// A chart's margins, the same in all of them.
fn framed<'a, 'b>(
    root: &'a DrawingArea<SVGBackend<'b>, plotters::coord::Shift>,
) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut chart = ChartBuilder::on(root);
    chart
        .margin_right(16)
        .margin_top(6)
        .set_label_area_size(LabelAreaPosition::Left, LEFT)
        .set_label_area_size(LabelAreaPosition::Bottom, 30);
    chart
}

/// Draws the axis of time, and that of what the chart shows.
fn axes<Y: Ranged<ValueType = f64> + ValueFormatter<f64>>(
    chart: &mut ChartContext<'_, SVGBackend<'_>, Cartesian2d<RangedCoordf64, Y>>,
    shows: &str,
    value: &dyn Fn(&f64) -> String,
) -> Result<(), ReportError> {
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_labels(12)
        .label_style(("sans-serif", 13))
        .y_labels(6)
        .y_desc(shows)
        .x_label_formatter(&|x| format!("{x:.1} s"))
        .y_label_formatter(value)
        .draw()
        .map_err(not_drawn)
}

impl Scene<'_> {
    pub(crate) fn of(record: &Record) -> Scene<'_> {
        let end = record.lasted.as_secs_f64().max(0.001);
        let band = |f: &Fault| Band {
            member: f.member,
            from: f.from.as_secs_f64(),
            to: f.to.map_or(end, |t| t.as_secs_f64()),
            color: color(f.how),
        };
        Scene {
            record,
            bins: record.tally.bins(record.lasted),
            bands: record.faults.iter().map(band).collect(),
            end,
        }
    }

    /// Faults as tall as a chart, behind what is drawn.
    fn shades<Y: Copy + 'static>(&self, low: Y, high: Y) -> impl Iterator<Item = Rectangle<(f64, Y)>> + '_ {
        self.bands
            .iter()
            .map(move |b| Rectangle::new([(b.from, low), (b.to, high)], b.color.mix(0.18).filled()))
    }

    fn when(&self, bin: usize) -> f64 {
        (bin as f64 + 0.5) * self.bins.width.as_secs_f64()
    }

    /// Counts of each piece for a second; the last piece may be a short one.
    fn a_second(&self, counts: &[u64]) -> Vec<f64> {
        let width = self.bins.width.as_secs_f64();
        let rate = |(i, count): (usize, &u64)| {
            let there = (self.end - i as f64 * width).clamp(width / 4.0, width);
            *count as f64 / there
        };
        counts.iter().enumerate().map(rate).collect()
    }

    /// A lane for each member: when it was broken, and when it was not used.
    pub(crate) fn lanes(&self) -> Drawn {
        let mut svg = String::new();
        let count = self.record.members.len();
        {
            let root = SVGBackend::with_string(&mut svg, (WIDTH, 44 + 44 * count as u32)).into_drawing_area();
            let mut chart =
                framed(&root).build_cartesian_2d(0.0..self.end, -(count as f64)..0.0).map_err(not_drawn)?;
            chart
                .configure_mesh()
                .disable_mesh()
                .disable_y_axis()
                .x_labels(12)
                .label_style(("sans-serif", 13))
                .x_label_formatter(&|x| format!("{x:.1} s"))
                .draw()
                .map_err(not_drawn)?;
            let least = self.end / 500.0;
            let lane = |member: usize, from: f64, to: f64, low: f64, high: f64, color: RGBColor| {
                let top = -(member as f64);
                // Also what is over at once is seen.
                Rectangle::new([(from, top - high), (f64::max(to, from + least), top - low)], color.filled())
            };
            let unused = self.record.unused().into_iter();
            let unused =
                unused.map(|(m, from, to)| lane(m, from.as_secs_f64(), to.as_secs_f64(), 0.5, 0.8, UNUSED));
            chart.draw_series(unused).map_err(not_drawn)?;
            let broken = self.bands.iter().map(|b| lane(b.member, b.from, b.to, 0.15, 0.45, b.color));
            chart.draw_series(broken).map_err(not_drawn)?;
            for (member, name) in self.record.members.iter().enumerate() {
                let place = (LEFT as i32 - 40, 6 + 44 * member as i32 + 12);
                root.draw_text(name, &("sans-serif", 16).into_text_style(&root), place).map_err(not_drawn)?;
            }
            root.present().map_err(not_drawn)?;
        }
        Ok(svg)
    }

    pub(crate) fn throughput(&self) -> Drawn {
        let right = self.a_second(&self.bins.right);
        let bad = self.a_second(&self.bins.bad);
        let high = top(right.iter().chain(&bad));
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
            let mut chart = framed(&root).build_cartesian_2d(0.0..self.end, 0.0..high).map_err(not_drawn)?;
            chart.draw_series(self.shades(0.0, high)).map_err(not_drawn)?;
            axes(&mut chart, "operations a second", &|y| format!("{y:.0}"))?;
            let line = right.iter().enumerate().map(|(i, y)| (self.when(i), *y));
            let style = member_color(0);
            chart
                .draw_series(AreaSeries::new(line, 0.0, style.mix(0.2)).border_style(style))
                .map_err(not_drawn)?;
            let bad = bad.iter().enumerate().filter(|(_, y)| **y > 0.0);
            let bad = bad.map(|(i, y)| Circle::new((self.when(i), *y), 4, BAD.filled()));
            chart.draw_series(bad).map_err(not_drawn)?;
            root.present().map_err(not_drawn)?;
        }
        Ok(svg)
    }

    pub(crate) fn latency(&self) -> Drawn {
        let known = || self.bins.latencies.iter().flatten();
        let low = known().map(|l| l.median).min().unwrap_or(1) as f64 / 2e3;
        let high = known().map(|l| l.longest).max().unwrap_or(1_000) as f64 / 1e3 * 1.5;
        // Nothing is drawn where nothing was begun.
        let pieces: Vec<(f64, Option<Spread>)> =
            self.bins.latencies.iter().enumerate().map(|(i, l)| (self.when(i), *l)).collect();
        let runs = || pieces.split(|(_, l)| l.is_none());
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
            let mut chart = framed(&root)
                .build_cartesian_2d(0.0..self.end, (low..high).log_scale())
                .map_err(not_drawn)?;
            chart.draw_series(self.shades(low, high)).map_err(not_drawn)?;
            axes(&mut chart, "latency", &|ms| shown(Duration::from_secs_f64(ms / 1e3)))?;
            let mut line = |of: fn(Spread) -> u64, color: RGBColor| -> Result<(), ReportError> {
                for run in runs() {
                    let points = run.iter().filter_map(|(x, l)| Some((*x, of((*l)?) as f64 / 1e3)));
                    chart.draw_series(LineSeries::new(points, color.stroke_width(2))).map_err(not_drawn)?;
                }
                Ok(())
            };
            line(|l| l.longest, UNUSED)?;
            line(|l| l.p99, MEMBERS[2])?;
            line(|l| l.median, MEMBERS[0])?;
            root.present().map_err(not_drawn)?;
        }
        Ok(svg)
    }

    /// What each member serves a second, one on top of the other.
    pub(crate) fn share(&self) -> Drawn {
        let count = self.record.members.len();
        // Each row: when, and up to where each member's part reaches.
        let mut rows: Vec<(f64, Vec<f64>)> = Vec::new();
        for pair in self.record.samples.windows(2) {
            let [before, after] = pair else { continue };
            let seconds = (after.at - before.at).as_secs_f64();
            if seconds < 0.01 {
                continue;
            }
            let parts =
                after.served.iter().zip(&before.served).map(|(a, b)| a.saturating_sub(*b) as f64 / seconds);
            let reach = parts.scan(0.0, |sum, part| {
                *sum += part;
                Some(*sum)
            });
            rows.push(((after.at + before.at).as_secs_f64() / 2.0, reach.collect()));
        }
        let high = top(rows.iter().filter_map(|(_, reach)| reach.last()));
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
            let mut chart = framed(&root).build_cartesian_2d(0.0..self.end, 0.0..high).map_err(not_drawn)?;
            axes(&mut chart, "served a second", &|y| format!("{y:.0}"))?;
            // The last one first: the others are drawn over it.
            for member in (0..count).rev() {
                let line = rows.iter().filter_map(|(x, reach)| Some((*x, *reach.get(member)?)));
                // White below, so that no color shines through.
                chart.draw_series(AreaSeries::new(line.clone(), 0.0, WHITE)).map_err(not_drawn)?;
                let color = member_color(member);
                chart
                    .draw_series(AreaSeries::new(line, 0.0, color.mix(0.55)).border_style(color))
                    .map_err(not_drawn)?;
            }
            root.present().map_err(not_drawn)?;
        }
        Ok(svg)
    }

    /// What this process held, of each piece of a chart.
    fn held(&self, what: fn(Held) -> f64) -> Vec<(f64, f64)> {
        let samples = self.record.samples.iter();
        samples.filter_map(|s| Some((s.at.as_secs_f64(), what(s.held?)))).collect()
    }

    /// Resident memory.
    pub(crate) fn memory(&self) -> Drawn {
        self.lines("MiB", &[(self.held(|held| held.memory as f64 / f64::from(1 << 20)), MEMBERS[0])])
    }

    /// Threads and open file descriptors.
    pub(crate) fn holdings(&self) -> Drawn {
        let threads = self.held(|held| held.threads as f64);
        let descriptors = self.held(|held| held.descriptors as f64);
        self.lines("count", &[(threads, MEMBERS[1]), (descriptors, MEMBERS[3])])
    }

    /// Lines over the whole time, from nothing up.
    fn lines(&self, shows: &str, lines: &[(Vec<(f64, f64)>, RGBColor)]) -> Drawn {
        let high = top(lines.iter().flat_map(|(line, _)| line).map(|(_, y)| y));
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
            let mut chart = framed(&root).build_cartesian_2d(0.0..self.end, 0.0..high).map_err(not_drawn)?;
            chart.draw_series(self.shades(0.0, high)).map_err(not_drawn)?;
            axes(&mut chart, shows, &|y| format!("{y:.0}"))?;
            for (line, color) in lines {
                let line = LineSeries::new(line.iter().copied(), color.stroke_width(2));
                chart.draw_series(line).map_err(not_drawn)?;
            }
            root.present().map_err(not_drawn)?;
        }
        Ok(svg)
    }
}

/// A little above the highest.
fn top<'a>(values: impl Iterator<Item = &'a f64>) -> f64 {
    values.copied().fold(1.0, f64::max) * 1.1
}
