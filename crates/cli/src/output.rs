//! What is printed: tables for people, JSON for programs.

use std::io::Write;

use serde::Serialize;

use crate::error::CliError;

/// Prints a value for programs, in one line. Whoever closed the pipe does not want it.
pub fn json(value: &impl Serialize) {
    if let Ok(text) = serde_json::to_string(value) {
        line(&text);
    }
}

/// Prints a line.
pub fn line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints columns as wide as they have to be.
pub fn table(head: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(head.get(column).map(|head| head.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let print = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        line(padded.collect::<Vec<_>>().join("   ").trim_end());
    };
    print(&mut head.iter().copied());
    for row in rows {
        print(&mut row.iter().map(String::as_str));
    }
}

/// A text that guests may have had a part in, without the control characters that could take a terminal over.
pub fn plain(text: &str) -> String {
    text.chars().filter(|letter| matches!(letter, '\n' | '\t') || !letter.is_control()).collect()
}

/// Prints what is wrong with one of several.
pub fn complaint(name: &str, error: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{}", plain(&format!("throughline: {name}: {error}")));
}

/// Prints an error: what, why, what to do next.
pub fn failure(error: &CliError, json: bool) {
    let mut stderr = std::io::stderr();
    let _ = if json {
        let value = serde_json::json!({ "error": {
            "kind": error.kind(), "message": error.to_string(), "hint": error.hint(), "code": error.code(),
        } });
        writeln!(stderr, "{value}")
    } else {
        let hint = error.hint().map_or_else(String::new, |hint| format!("\n{hint}"));
        writeln!(stderr, "{}", plain(&format!("throughline: {error}{hint}")))
    };
}

/// The time, in milliseconds since 1970.
pub fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// An age, as people say it.
pub fn age(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// A number of bytes, as people say it.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (0..UNITS.len() - 1).find(|unit| count >> (10 * (unit + 1)) == 0).unwrap_or(UNITS.len() - 1);
    let (whole, tenths) = (count >> (10 * unit), ((count * 10) >> (10 * unit)) % 10);
    if unit == 0 || whole >= 100 {
        format!("{whole} {}", UNITS[unit])
    } else {
        format!("{whole}.{tenths} {}", UNITS[unit])
    }
}
