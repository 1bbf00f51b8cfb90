//! Plain aligned tables for people. Scripts use `--json`.

/// Columns are as wide as their widest cell, two spaces apart, nothing after the last.
pub fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = rows.into_iter().map(|row| row.map(|cell| printable(&cell))).collect();
    let mut widths = head.map(|h| h.chars().count());
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in std::iter::once(&head.map(str::to_string)).chain(&rows) {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

/// What a device printed never moves the operator's cursor: control characters are shown, not obeyed.
fn printable(cell: &str) -> String {
    cell.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_control_characters_do_nothing() {
        let rows = [["pc".to_string(), "é".to_string()], ["x".to_string(), "a\u{1b}[2Jb".to_string()]];
        assert_eq!(table(["NAME", "V"], rows), "NAME  V\npc    é\nx     a\u{fffd}[2Jb\n");
    }
}
