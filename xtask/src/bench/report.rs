//! `report.html`: bars, the limit of the machine drawn into them, and the table, in one file that needs no other.

use super::table::{self, Earlier, Row};

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;color:#222;background:#fff;max-width:1000px;margin:2em auto;padding:0 1em}\
h1{font-size:1.5em;margin-bottom:.2em}h2{font-size:1.15em;margin:2em 0 .4em}p{color:#555;max-width:75ch}\
svg{max-width:100%;height:auto}.scroll{overflow-x:auto}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.85em}\
th,td{padding:.2em .5em;text-align:right;white-space:nowrap}th{border-bottom:2px solid #888}\
td.why{white-space:normal;min-width:22em}.word{text-align:left}\
.holds{color:#1d7a3d}.short{color:#b3261e}.none{color:#777}";

const LINE: usize = 24;
const LEFT: f64 = 170.0;
const WIDTH: f64 = 860.0;

/// The whole page. `before`: the rows of an earlier run.
pub(super) fn render(rows: &[Row], before: Option<&[Earlier]>, rounds: u32) -> String {
    let mut page =
        String::from("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    page.push_str(
        "<meta name=\"viewport\" content=\"width=device-width\"><title>Beside the peers</title>",
    );
    page.push_str(&format!(
        "<style>{STYLE}</style></head>\n<body>\n<h1>Beside the peers</h1>\n"
    ));
    page.push_str(&format!(
        "<p>Nanoseconds, medians of {rounds} round(s); a ratio is taken within a round. The red line is what the machine \
         allows: an acquire load, or one membarrier.{}</p>\n",
        if before.is_some() { " The grey mark is the earlier run's." } else { "" }
    ));
    let mut drawn: Vec<(&str, u32)> = Vec::new();
    for row in rows {
        let group = (row.target.id.as_str(), row.target.threads);
        if drawn.contains(&group) {
            continue;
        }
        drawn.push(group);
        let same: Vec<&Row> = rows
            .iter()
            .filter(|r| (r.target.id.as_str(), r.target.threads) == group)
            .collect();
        page.push_str(&format!(
            "<h2>{}, {} thread(s)</h2>\n",
            escaped(group.0),
            group.1
        ));
        page.push_str(&bars(&same, before));
    }
    page.push_str("<h2>All rows</h2>\n");
    table(&mut page, rows, before);
    page.push_str("</body></html>\n");
    page
}

fn earlier<'e>(before: Option<&'e [Earlier]>, row: &Row) -> Option<&'e Earlier> {
    let target = &row.target;
    let same = |e: &&Earlier| {
        e.id == target.id && e.threads == u64::from(target.threads) && e.peer == row.peer
    };
    before?.iter().find(same)
}

/// Ours and its peers as bars on one linear scale from zero, as SVG.
fn bars(rows: &[&Row], before: Option<&[Earlier]>) -> String {
    let mut bars: Vec<(&str, Option<f64>, &str)> = vec![("ours", rows[0].ours_ns, "#0b4f8a")];
    bars.extend(
        rows.iter()
            .map(|row| (row.peer.as_str(), row.peer_ns, "#d97b29")),
    );
    let most = bars.iter().filter_map(|bar| bar.1).fold(0.0, f64::max);
    let scale = if most > 0.0 { WIDTH / most } else { 0.0 };
    let height = bars.len() * LINE + 6;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {} {height}\" width=\"{0}\" font-family=\"sans-serif\" font-size=\"13\">\n",
        LEFT + WIDTH + 90.0
    );
    for (line, (name, ns, color)) in bars.iter().enumerate() {
        let top = line * LINE + 4;
        let middle = top + 13;
        svg.push_str(&format!(
            "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            escaped(name)
        ));
        let width = ns.unwrap_or(0.0) * scale;
        let words = ns.map_or_else(|| "not measured".to_owned(), |ns| format!("{ns:.2}"));
        svg.push_str(&format!(
            "<rect x=\"{LEFT}\" y=\"{top}\" width=\"{width:.1}\" height=\"16\" fill=\"{color}\"/>\
             <text x=\"{:.1}\" y=\"{middle}\">{words}</text>\n",
            LEFT + width + 6.0
        ));
    }
    let mut mark = |ns: Option<f64>, bottom: usize, color: &str| {
        if let Some(x) = ns.map(|ns| LEFT + ns * scale).filter(|x| x.is_finite()) {
            svg.push_str(&format!(
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{bottom}\" stroke=\"{color}\" stroke-width=\"2\"/>\n"
            ));
        }
    };
    mark(rows[0].limit_ns, height, "#b3261e");
    mark(
        earlier(before, rows[0]).and_then(|e| e.ours_ns),
        LINE,
        "#888",
    );
    svg.push_str("</svg>\n");
    svg
}

fn table(page: &mut String, rows: &[Row], before: Option<&[Earlier]>) {
    page.push_str("<div class=\"scroll\"><table>\n<tr>");
    for (column, name) in table::COLUMNS.iter().enumerate() {
        page.push_str(&format!("<th{}>{name}</th>", word(column)));
    }
    if before.is_some() {
        page.push_str("<th>ratio before</th>");
    }
    page.push_str("<th class=\"word\">why this target</th></tr>\n");
    for row in rows {
        let class = match row.holds() {
            Some(true) => "holds",
            Some(false) => "short",
            None => "none",
        };
        page.push_str(&format!("<tr class=\"{class}\">"));
        for (column, cell) in row.cells().iter().enumerate() {
            page.push_str(&format!("<td{}>{}</td>", word(column), escaped(cell)));
        }
        if before.is_some() {
            let ratio = earlier(before, row).and_then(|e| e.ratio);
            let words = ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
            page.push_str(&format!("<td>{words}</td>"));
        }
        let why = escaped(&row.target.reason);
        page.push_str(&format!("<td class=\"word why\">{why}</td></tr>\n"));
    }
    page.push_str("</table></div>\n");
}

fn word(column: usize) -> &'static str {
    if table::WORDS.contains(&column) {
        " class=\"word\""
    } else {
        ""
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::table::tests::rows;
    use super::*;

    #[test]
    fn the_page_is_whole_and_shows_limit_history_and_what_is_missing() {
        let rows = rows();
        let bare = render(&rows, None, 3);
        assert!(bare.ends_with("</html>\n") && !bare.contains("a <reason>"));
        assert_eq!(bare.matches("<svg").count(), 3);
        assert_eq!(
            bare.matches("#b3261e\" stroke").count(),
            2,
            "the limit, where it was measured"
        );
        assert!(bare.contains("not measured") && !bare.contains("ratio before"));
        let before = table::from_json(&table::json(&rows)).unwrap();
        let page = render(&rows, Some(&before), 3);
        assert!(page.contains("ratio before") && page.contains("#888\" stroke"));
        for outside in ["src=", "href=", "@import"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn nothing_measured_draws_nothing_odd() {
        let mut rows = rows();
        rows.drain(..2);
        assert!(!render(&rows, None, 1).contains("NaN"));
    }
}
