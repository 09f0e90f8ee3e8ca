//! `report.html`: bars, the limit of the machine drawn into them, and the table, in one file that needs no other.

use super::chart;
use super::table::{self, Earlier, Row, earlier};

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;color:#222;background:#fff;max-width:1000px;margin:2em auto;padding:0 1em}\
h1{font-size:1.5em;margin-bottom:.2em}h2{font-size:1.25em;margin:2em 0 .4em}h3{font-size:1em;margin:1.2em 0 .2em}p{color:#555;max-width:75ch}\
svg{max-width:100%;height:auto}.scroll{overflow-x:auto}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.85em}\
th,td{padding:.2em .5em;text-align:right;white-space:nowrap}th{border-bottom:2px solid #888}\
td.why{white-space:normal;min-width:22em}.word{text-align:left}\
.holds{color:#1d7a3d}.short{color:#b3261e}.none{color:#777}";

/// The whole page. `before`: the rows of an earlier run; `where_and_how`: the machine, and the command.
pub(super) fn render(
    rows: &[Row],
    before: Option<&[Earlier]>,
    where_and_how: &str,
) -> Result<String, String> {
    let mut page =
        String::from("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    page.push_str(
        "<meta name=\"viewport\" content=\"width=device-width\"><title>Beside the peers</title>",
    );
    page.push_str(&format!(
        "<style>{STYLE}</style></head>\n<body>\n<h1>Beside the peers</h1>\n<p>{}</p>\n",
        escaped(where_and_how)
    ));
    let count = |holds| rows.iter().filter(|row| row.holds() == holds).count();
    page.push_str(&format!(
        "<p>{} rows: {} hold, {} fall short, {} were not measured.</p>\n",
        rows.len(),
        count(Some(true)),
        count(Some(false)),
        count(None)
    ));
    page.push_str(&format!(
        "<div class=\"scroll\">{}</div>\n",
        chart::overview(rows)?
    ));
    page.push_str(&format!(
        "<h2>Row by row</h2>\n<p>A ratio is ours over the peer's (or, where it is to be <em>at least</em> something, the work of \
         all threads over that of one), taken within a round; the median of the rounds is shown. The black tick in a peer's \
         bar is how long ours may be; the red line is what the machine allows: an acquire load, one membarrier, an \
         exchange.{}</p>\n",
        if before.is_some() { " The grey mark on ours is the earlier run's." } else { "" }
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
        let threads = match group.1 {
            0 => String::new(),
            1 => ", 1 thread".to_owned(),
            n => format!(", {n} threads"),
        };
        page.push_str(&format!("<h3>{}{threads}</h3>\n", escaped(group.0)));
        page.push_str(&chart::bars(&same, before)?);
    }
    page.push_str("<h2>All rows</h2>\n");
    table(&mut page, rows, before);
    page.push_str("</body></html>\n");
    Ok(page)
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
            let ratio = before
                .and_then(|rows| earlier(rows, row))
                .and_then(|e| e.ratio);
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
    fn the_page_is_whole_and_shows_history_and_what_is_missing() {
        let rows = rows();
        let bare = render(&rows, None, "here & now").unwrap();
        assert!(bare.ends_with("</html>\n") && !bare.contains("a <reason>"));
        assert!(
            bare.contains("here &amp; now") && bare.contains("1 hold, 1 fall short, 1 were not")
        );
        assert_eq!(bare.matches("<svg").count(), 4);
        assert!(bare.contains("not measured") && !bare.contains("ratio before"));
        let before = table::from_json(&table::json(&rows)).unwrap();
        let page = render(&rows, Some(&before), "").unwrap();
        assert!(page.contains("ratio before") && page.contains("grey mark"));
        for outside in ["src=", "href=", "@import"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn nothing_measured_draws_nothing_odd() {
        let mut rows = rows();
        rows.drain(..2);
        assert!(!render(&rows, None, "").unwrap().contains("NaN"));
    }
}
