//! Whether this host can run sandboxes.

use serde_json::json;
use throughline_sandbox::doctor::{self, State};

use crate::output;

/// `doctor`: 0 when nothing is missing that every sandbox needs, else 1.
pub async fn examine(json: bool) -> u8 {
    let mut checks = doctor::examine().await;
    checks.push(throughline_shim::pool::check());
    let fit = doctor::is_fit(&checks);
    if json {
        output::json(&json!({ "checks": checks, "ok": fit }));
    } else {
        let rows = checks.into_iter().map(|check| {
            let state = match check.state {
                State::Ok => "ok",
                State::Warning => "warning",
                State::Missing => "MISSING",
            };
            vec![check.name, state.to_owned(), check.detail, check.mend.unwrap_or_default()]
        });
        output::table(&["CHECK", "STATE", "FOUND", "MEND WITH"], &rows.collect::<Vec<_>>());
    }
    u8::from(!fit)
}
