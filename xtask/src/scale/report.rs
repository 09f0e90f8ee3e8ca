//! `report.html`: the pictures, the verdicts and the table in one file that needs no other.

use std::fmt::Write;

use super::Machine;
use super::chart;
use super::options::Engine;
use super::table::{self, Row};
use crate::verdict::Verdict;

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;color:#222;background:#fff;max-width:1000px;margin:2em auto;padding:0 1em}\
h1{font-size:1.5em;margin-bottom:.2em}h2{font-size:1.15em;margin:2em 0 .4em}\
p.machine{color:#666;margin:0}\
figure{margin:0}figcaption{color:#555;font-size:.93em;max-width:75ch}svg{max-width:100%;height:auto}\
.scroll{overflow-x:auto}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.85em}\
th,td{padding:.2em .5em;text-align:right;white-space:nowrap}th{border-bottom:2px solid #888;font-weight:600}\
.word{text-align:left}tr.first td{border-top:1px solid #ccc}tr.ours td{background:#eef5fb}\
ul.verdicts{list-style:none;padding:0}ul.verdicts b{display:inline-block;min-width:6.5em}\
.holds b{color:#1d7a3d}.short b{color:#b3261e}";

/// The whole page. `conditions`: what the rows have in common, in words.
pub(crate) fn render(
    machine: &Machine,
    conditions: &str,
    rows: &[Row],
    verdicts: &[Verdict],
) -> Result<String, String> {
    let mut page =
        String::from("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    page.push_str("<meta name=\"viewport\" content=\"width=device-width\">");
    page.push_str("<title>Deferred freeing, side by side</title>");
    page.push_str(&format!("<style>{STYLE}</style></head>\n<body>\n"));
    page.push_str("<h1>Deferred freeing, side by side</h1>\n");
    page.push_str(&format!(
        "<p class=\"machine\">{}; {}</p>\n",
        escaped(&describe(machine)),
        escaped(conditions)
    ));

    page.push_str("<h2>What an object costs</h2>\n");
    let words = "Wall time of a run over its objects: allocate, touch, retire, and free after a grace period. \
                 malloc-free frees at once.";
    // Readers alone have no objects, and who times each call pays for the clock.
    let costs: Vec<Row> = (rows.iter())
        .filter(|row| row.workload != "reader" && row.workload != "latency")
        .cloned()
        .collect();
    figure(&mut page, &chart::bars(&costs)?, words);

    page.push_str("<h2>What waits to be freed</h2>\n");
    let shown = floods(rows);
    match chart::memory(&shown)? {
        Some(svg) => {
            let group = shown
                .first()
                .map_or_else(String::new, |row| row.group_label());
            let words = format!(
                "Memory retired and not yet freed over one run ({group}): batched against one callback per object."
            );
            figure(&mut page, &svg, &words);
        }
        None => {
            page.push_str("<p>Not measured: neither kvfree nor kvfree-unbatched ran a flood.</p>\n")
        }
    }

    page.push_str("<h2>Targets</h2>\n<ul class=\"verdicts\">\n");
    for verdict in verdicts {
        let (class, word) = if verdict.holds {
            ("holds", "holds")
        } else {
            ("short", "falls short")
        };
        let text = escaped(&verdict.text);
        page.push_str(&format!(
            "<li class=\"{class}\"><b>{word}</b> {text}</li>\n"
        ));
    }
    page.push_str("</ul>\n<h2>All columns</h2>\n");
    table_html(&mut page, rows);
    page.push_str("</body></html>\n");
    Ok(page)
}

/// The pictures by themselves, with the names of their files.
pub(crate) fn pictures(rows: &[Row]) -> Result<Vec<(&'static str, String)>, String> {
    let mut pictures = vec![("cost.svg", chart::bars(rows)?)];
    if let Some(svg) = chart::memory(&floods(rows))? {
        pictures.push(("flood.svg", svg));
    }
    Ok(pictures)
}

/// The rows whose waiting memory is drawn.
fn floods(rows: &[Row]) -> Vec<&Row> {
    let engines = [Engine::Kvfree, Engine::KvfreeUnbatched].into_iter();
    engines
        .filter_map(|engine| flood_row(rows, engine))
        .collect()
}

/// The flood row of `engine` with the fewest threads.
fn flood_row(rows: &[Row], engine: Engine) -> Option<&Row> {
    rows.iter()
        .filter(|row| row.engine == engine && row.workload == "flood")
        .min_by_key(|row| row.run.threads)
}

fn describe(machine: &Machine) -> String {
    let mut text = format!("{} CPUs", machine.cpus);
    if let Some(kernel) = &machine.kernel {
        // Writing to a string cannot fail.
        let _ = write!(text, ", kernel {kernel}");
    }
    text.push_str(match machine.membarrier {
        Some(true) => ", membarrier in use",
        Some(false) => ", no membarrier (readers are fenced)",
        None => "",
    });
    text
}

fn figure(page: &mut String, svg: &str, words: &str) {
    let words = escaped(words);
    page.push_str(&format!(
        "<figure>\n{svg}<figcaption>{words}</figcaption>\n</figure>\n"
    ));
}

fn table_html(page: &mut String, rows: &[Row]) {
    let class = |column: usize| {
        if table::WORDS.contains(&column) {
            " class=\"word\""
        } else {
            ""
        }
    };
    page.push_str("<div class=\"scroll\"><table>\n<tr>");
    for (column, name) in table::COLUMNS.iter().enumerate() {
        page.push_str(&format!("<th{}>{name}</th>", class(column)));
    }
    page.push_str("</tr>\n");
    let mut group = None;
    for (row, cells) in rows.iter().zip(table::cells(rows)) {
        let mut classes = Vec::new();
        if group.replace(row.group_label()) != Some(row.group_label()) {
            classes.push("first");
        }
        if row.engine == Engine::Kvfree {
            classes.push("ours");
        }
        page.push_str(&format!("<tr class=\"{}\">", classes.join(" ")));
        for (column, cell) in cells.iter().enumerate() {
            page.push_str(&format!("<td{}>{}</td>", class(column), escaped(cell)));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::row;
    use super::super::targets;
    use super::*;

    #[test]
    fn the_page_is_whole_and_escaped() {
        let machine = Machine {
            cpus: 2,
            kernel: Some("6.1 <custom>".to_owned()),
            membarrier: Some(true),
        };
        let mut rows = vec![
            row("flood", 1, Engine::Kvfree, 3.0, 10),
            row("flood", 1, Engine::KvfreeUnbatched, 100.0, 500),
            row("trace:<b>", 1, Engine::Kovan, 9.0, 0),
        ];
        rows[0].run.samples = vec![(0.0, 1.0), (5.0, 9.0)];
        let page = render(&machine, "quick", &rows, &targets::verdicts(&rows)).expect("renders");
        assert_eq!(page.matches("<svg").count(), 2);
        assert!(!page.contains("<custom>") && !page.contains("trace:<b>"));
        assert!(page.contains("<td>500</td>") && page.ends_with("</html>\n"));
        for outside in ["http-equiv", "src=", "href=", "@import"] {
            assert!(!page.contains(outside), "{outside}");
        }
        let bare = render(&machine, "quick", &rows[2..], &[]).expect("renders");
        assert!(bare.contains("Not measured"));
    }
}
