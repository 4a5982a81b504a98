//! A drill's report: one HTML file that needs nothing else, with its charts in it.

use std::fmt::Write as _;
use std::time::Duration;

use ha_page::{Columns, escaped};
use plotters::style::RGBColor;

use crate::charts::{BAD, Drawn, MEMBERS, Scene, UNUSED, color, member_color};
use crate::plan::How;
use crate::record::Record;
use crate::tally::Figures;
use crate::verdict::shown;

pub use crate::charts::ReportError;

/// The report.
///
/// # Errors
/// A chart that could not be drawn.
pub fn html(record: &Record) -> Drawn {
    let scene = Scene::of(record);
    let figures = record.figures();
    let title = format!("Failover drill: {}", record.scenario);
    let mut page = ha_page::beginning(&title, STYLE, record.is_well(), &record.verdict());
    // Writing to a string does not fail.
    _ = writeln!(page, "<p>{}</p>", escaped(&setting(record)));
    cards(&mut page, &figures);
    _ = write!(
        page,
        "<h2>The members</h2>\n<p class=\"key\">Above: {}. Below: {}.</p>\n{}\n",
        How::EVERY.map(|how| swatch(color(how), &how.to_string())).join(", "),
        swatch(UNUSED, "not used by the group"),
        scene.lanes()?
    );
    _ = write!(
        page,
        "<h2>Throughput</h2>\n<p class=\"key\">Operations that ended well, in pieces of {}; {}. Shaded: a member is broken.</p>\n{}\n",
        shown(scene.bins.width),
        swatch(BAD, "failed or wrong"),
        scene.throughput()?
    );
    _ = write!(
        page,
        "<h2>Latency</h2>\n<p class=\"key\">{}, {}, {} of the operations that began in each piece.</p>\n{}\n",
        swatch(MEMBERS[0], "median"),
        swatch(MEMBERS[2], "99th percentile"),
        swatch(UNUSED, "longest"),
        scene.latency()?
    );
    let served = record.served();
    let all: u64 = served.values().sum();
    let shares = record.members.iter().enumerate().map(|(i, name)| {
        let count = served.get(name).copied().unwrap_or(0);
        let percent = count as f64 * 100.0 / all.max(1) as f64;
        swatch(member_color(i), &format!("{name}: {count} ({percent:.0} %)"))
    });
    _ = write!(
        page,
        "<h2>Share by member</h2>\n<p class=\"key\">Served: {}. What was begun on a member that broke counts there too.</p>\n{}\n",
        shares.collect::<Vec<_>>().join(", "),
        scene.share()?
    );
    if let Some(course) = record.held() {
        _ = write!(
            page,
            "<h2>What the process held</h2>\n<p class=\"key\">This process, which has the group in it: {}.</p>\n<p class=\"key\">{}</p>\n{}\n\
             <p class=\"key\">{}, {}</p>\n{}\n",
            escaped(&course.words()),
            swatch(MEMBERS[0], "resident memory"),
            scene.memory()?,
            swatch(MEMBERS[1], "threads"),
            swatch(MEMBERS[3], "open file descriptors"),
            scene.holdings()?
        );
    }
    tables(&mut page, record);
    page.push_str(ha_page::END);
    Ok(page)
}

const STYLE: &str = "svg{max-width:100%;height:auto;display:block}\
.cards{display:flex;flex-wrap:wrap;gap:.7em;margin:1em 0}.card{border:1px solid #ddd;border-radius:6px;padding:.5em .9em;min-width:6.5em}\
.card b{display:block;font-size:1.35em;font-weight:600}.card span{color:#666;font-size:.9em}\
.key i{display:inline-block;width:.9em;height:.9em;margin-right:.3em;vertical-align:-.1em;border-radius:2px}";

fn swatch(color: RGBColor, name: &str) -> String {
    let RGBColor(r, g, b) = color;
    format!("<i style=\"background:rgb({r},{g},{b})\"></i>{}", escaped(name))
}

fn setting(record: &Record) -> String {
    let deadline = record.deadline.map_or_else(|| "off".into(), |d| format!("{}ms", d.as_millis()));
    let members = record.members.len();
    let (what, which) = match &record.group {
        Some(label) => (
            format!("{members} members of the group {label}, broken in front of their modules"),
            String::new(),
        ),
        None => (
            format!("{members} SoftHSM members behind p11-kit servers"),
            format!(" --softhsm {members} --deadline {deadline}"),
        ),
    };
    format!(
        "{what}; {} threads; the load lasted {}. To play it again: \
         hactl drill {}{which} --seconds {} --threads {} --seed {}",
        record.threads,
        shown(record.lasted),
        record.scenario,
        record.length.as_secs(),
        record.threads,
        record.seed
    )
}

fn cards(page: &mut String, figures: &Figures) {
    let us = |us: u64| shown(Duration::from_micros(us));
    let time = |t: Option<Duration>| t.map_or_else(|| "–".into(), shown);
    let mut all = vec![
        ("operations", figures.operations.to_string()),
        ("failed", figures.failed.to_string()),
        ("wrong", figures.wrong.to_string()),
    ];
    if figures.expected > 0 {
        all.push(("failed as they had to", figures.expected.to_string()));
        all.push(("the longest of these", time(figures.expected_longest)));
    }
    all.extend([
        ("median", us(figures.percentile(50.0))),
        ("99 %", us(figures.percentile(99.0))),
        ("99.9 %", us(figures.percentile(99.9))),
        ("longest", us(figures.latencies.max())),
        ("longest pause", shown(figures.pause)),
        ("time to detect, longest", time(figures.failover)),
        ("time to recover, longest", time(figures.recovery)),
    ]);
    page.push_str("<div class=\"cards\">\n");
    for (name, value) in all {
        _ = writeln!(page, "<div class=\"card\"><b>{}</b><span>{name}</span></div>", escaped(&value));
    }
    page.push_str("</div>\n");
}

fn table(page: &mut String, title: &str, header: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    _ = write!(page, "<h2>{title}</h2>\n{}", ha_page::table(Columns::Numbers, header, rows));
}

fn tables(page: &mut String, record: &Record) {
    let us = |us: u64| shown(Duration::from_micros(us));
    let time = |t: Option<Duration>| t.map(shown).unwrap_or_default();
    let figures = record.by_scenario();
    if figures.len() > 1 {
        let header = [
            "scenario",
            "operations",
            "failed",
            "wrong",
            "expected",
            "median",
            "99 %",
            "longest",
            "pause",
            "to detect",
            "to recover",
        ];
        let rows = figures.iter().map(|f| {
            vec![
                f.scenario.to_string(),
                f.operations.to_string(),
                f.failed.to_string(),
                f.wrong.to_string(),
                f.expected.to_string(),
                us(f.percentile(50.0)),
                us(f.percentile(99.0)),
                us(f.latencies.max()),
                shown(f.pause),
                time(f.failover),
                time(f.recovery),
            ]
        });
        table(page, "By scenario", &header, rows);
    }
    let rows = record.courses().into_iter().map(|c| {
        let name = record.members.get(c.fault.member).cloned().unwrap_or_default();
        vec![
            format!("{name} {}", c.fault.how),
            c.fault.scenario.to_string(),
            shown(c.fault.from),
            c.fault.to.map(|to| shown(to - c.fault.from)).unwrap_or_default(),
            c.noticed.map_or_else(|| "not noticed".into(), shown),
            time(c.back),
        ]
    });
    let header = ["fault", "scenario", "began", "lasted", "time to detect", "time to recover"];
    table(page, "Faults", &header, rows);
    let rows =
        record.tally.by_kind().filter(|(_, latencies)| !latencies.is_empty()).map(|(kind, latencies)| {
            let at = |q: f64| us(latencies.value_at_quantile(q));
            vec![
                kind.name().to_owned(),
                latencies.len().to_string(),
                at(0.5),
                at(0.99),
                at(0.999),
                us(latencies.max()),
            ]
        });
    table(page, "By operation", &["operation", "count", "median", "99 %", "99.9 %", "longest"], rows);
    let errors = record.figures().errors;
    if !errors.is_empty() {
        let rows = errors.iter().map(|(rv, count)| vec![rv.clone(), count.to_string()]);
        table(page, "Errors that were not expected", &["answer", "count"], rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::{record, with_a_fault};

    #[test]
    fn it_has_the_figures_and_needs_nothing_else() {
        let record = with_a_fault();
        let page = html(&record).unwrap();
        for part in [
            "Failover drill: kill",
            "class=\"verdict well\"",
            &escaped(&record.verdict()),
            "--seed 5",
            "<b>100</b><span>operations",
            "<td>a killed</td><td>kill</td><td>200.0 ms</td><td>200.0 ms</td><td>5.0 ms</td><td>50.0 ms</td>",
            "a: 60 (59 %)",
        ] {
            assert!(page.contains(part), "{part}");
        }
        assert_eq!(page.matches("<svg").count(), 4);
        // The name of a language is no address that is asked.
        let page = page.replace("http://www.w3.org/2000/svg", "");
        for outside in ["http:", "https:", "src=", "href=", "url(", "@import", "<script"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn what_the_process_held_is_drawn_where_it_is_known() {
        let mut record = with_a_fault();
        let held = crate::held::Held { memory: 3 << 20, threads: 9, descriptors: 14 };
        record.samples.push(crate::record::Sample {
            at: record.lasted,
            served: vec![60, 41],
            held: Some(held),
        });
        let page = html(&record).unwrap();
        assert!(page.contains("9 to 9 threads, 14 to 14 file descriptors"), "{page}");
        assert_eq!(page.matches("<svg").count(), 6);
    }

    #[test]
    fn bad_news_is_seen() {
        let mut record = with_a_fault();
        record.away.push("<b>".into());
        let page = html(&record).unwrap();
        assert!(page.contains("class=\"verdict bad\"") && page.contains("&lt;b&gt;"));
    }

    #[test]
    fn a_drill_in_which_nothing_happened_has_one_too() {
        let mut record = record();
        record.tally = crate::tally::Tally::default();
        record.samples = crate::record::Samples::default();
        record.lasted = Duration::ZERO;
        assert!(html(&record).is_ok());
    }
}
