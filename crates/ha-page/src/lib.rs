//! Reports that are one HTML file and need nothing else: their frame, their style, and text that stays text.
//!
//! What is not escaped here is the caller's own markup. Nothing refers to another file or address, and nothing is run.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

/// The style that every report has.
const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222;background:#fff}\
h1{font-size:1.6em;margin-bottom:.3em}h2{font-size:1.15em;margin:1.6em 0 .2em}\
.verdict{font-size:1.1em;padding:.6em .9em;border-left:5px solid}.well{background:#e9f5ea;border-color:#3c8d40}.bad{background:#fbe9e8;border-color:#c00000}\
.key{color:#666;font-size:.9em;margin:.1em 0 .3em}\
table{border-collapse:collapse;margin:.5em 0}th,td{padding:.2em .9em .2em 0;text-align:left;border-bottom:1px solid #e5e5e5}\
th{color:#666;font-weight:500}table.numbers :is(th,td):not(:first-child){text-align:right;font-variant-numeric:tabular-nums}\
code{background:#f3f3f3;padding:.1em .3em}\
@media print{body{max-width:none;margin:0}.verdict{print-color-adjust:exact;-webkit-print-color-adjust:exact}thead{display:table-header-group}tr{break-inside:avoid}}";

/// A page up to its heading and the sentence that says how it came out. `style` is the report's own, as CSS.
pub fn beginning(title: &str, style: &str, is_well: bool, verdict: &str) -> String {
    let (title, class) = (escaped(title), if is_well { "well" } else { "bad" });
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>{title}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n\
         <h1>{title}</h1>\n<p class=\"verdict {class}\">{}</p>\n",
        escaped(verdict)
    )
}

/// A page's end.
pub const END: &str = "</body>\n</html>\n";

/// Text as it is read: in an element, or in an attribute's value between quotation marks.
pub fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

/// What stands in a table's columns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Columns {
    /// Words.
    Words,
    /// Numbers, after a first column of words.
    Numbers,
}

/// A table of text.
pub fn table(columns: Columns, header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let cells = rows.map(|row| row.iter().map(|cell| escaped(cell)).collect());
    table_of_markup(columns, header, cells)
}

/// A table whose cells are markup of the caller's.
pub fn table_of_markup(columns: Columns, header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let class = match columns {
        Columns::Words => "",
        Columns::Numbers => " class=\"numbers\"",
    };
    let header: Vec<String> = header.iter().map(|name| escaped(name)).collect();
    let mut table =
        format!("<table{class}>\n<thead><tr><th>{}</th></tr></thead>\n<tbody>\n", header.join("</th><th>"));
    for row in rows {
        table.push_str(&format!("<tr><td>{}</td></tr>\n", row.join("</td><td>")));
    }
    table.push_str("</tbody>\n</table>\n");
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const NASTY: &str = "</title><script>alert(\"1\")</script>&'";

    #[test]
    fn text_stays_text_wherever_it_stands() {
        let safe = "&lt;/title&gt;&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;&#39;";
        assert_eq!(escaped(NASTY), safe);
        let page = beginning(NASTY, "", false, NASTY);
        assert_eq!(page.matches(safe).count(), 3, "{page}");
        assert!(!page.contains("<script") && page.contains("verdict bad"));
        let table = table(Columns::Words, &[NASTY], [vec![NASTY.to_owned()]].into_iter());
        assert_eq!(table.matches(safe).count(), 2, "{table}");
    }

    #[test]
    fn a_page_needs_nothing_else() {
        let page = beginning("t", "p{}", true, "v") + END;
        for outside in ["http:", "https:", "src=", "href=", "url(", "@import", "<script"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
