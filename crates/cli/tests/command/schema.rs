//! What is printed for programs, held against `docs/JSON.md`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::support::{Name, json, printed, refused};

const DOCUMENT: &str = include_str!("../../../../docs/JSON.md");
/// The one that removes what other tests have just ended: its own test holds it against this.
const ALONE: &str = "`prune`";

/// The document: the block of each heading.
pub struct Schema {
    blocks: BTreeMap<&'static str, Value>,
    used: BTreeSet<String>,
}

impl Schema {
    pub fn read() -> Self {
        let mut blocks = BTreeMap::new();
        for chapter in DOCUMENT.split("\n## ").skip(1) {
            let (heading, text) = chapter.split_once('\n').unwrap();
            let (_, block) = text.split_once("```json\n").unwrap();
            let (block, _) = block.split_once("```").unwrap();
            blocks.insert(heading, serde_json::from_str(block).unwrap_or_else(|error| panic!("{heading}: {error}")));
        }
        Self { blocks, used: BTreeSet::new() }
    }

    /// Whether a value is as its heading's block says; panics where it is not.
    pub fn holds(&mut self, heading: &str, value: &Value) {
        if let Err(why) = self.fits(heading, value) {
            panic!("{heading}: {why}, in {value}");
        }
    }

    fn fits(&mut self, heading: &str, value: &Value) -> Result<(), String> {
        self.used.insert(heading.to_owned());
        let block = self.blocks.get(heading).unwrap_or_else(|| panic!("{heading} is no heading")).clone();
        self.check(&block, value)
    }

    fn check(&mut self, shape: &Value, value: &Value) -> Result<(), String> {
        match (shape, value) {
            (Value::String(words), _) => {
                let wrong = || Err(format!("{value} is not {words}"));
                words.split('|').any(|word| self.is(word, value)).then_some(()).map_or_else(wrong, Ok)
            }
            (Value::Array(shapes), Value::Array(values)) => {
                values.iter().try_for_each(|value| self.check(&shapes[0], value))
            }
            (Value::Object(fields), Value::Object(values)) if fields.contains_key("*") => {
                values.values().try_for_each(|value| self.check(&fields["*"], value))
            }
            (Value::Object(fields), Value::Object(values)) => {
                let unknown =
                    values.keys().find(|key| !fields.contains_key(*key) && !fields.contains_key(&format!("{key}?")));
                if let Some(unknown) = unknown {
                    return Err(format!("{unknown} is not documented"));
                }
                fields.iter().try_for_each(|(key, shape)| {
                    match (values.get(key.trim_end_matches('?')), key.ends_with('?')) {
                        (Some(value), _) => self.check(shape, value).map_err(|why| format!("{key}: {why}")),
                        (None, true) => Ok(()),
                        (None, false) => Err(format!("{key} is missing")),
                    }
                })
            }
            _ => Err(format!("{value} is another kind of thing than {shape}")),
        }
    }

    fn is(&mut self, word: &str, value: &Value) -> bool {
        match word {
            "string" => value.is_string(),
            "integer" => value.is_u64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "null" => value.is_null(),
            "any" => true,
            word if word.starts_with('=') => value.as_str() == Some(&word[1..]),
            word => self.fits(&format!("`{word}`"), value).is_ok(),
        }
    }
}

#[test]
fn vm_what_is_printed_for_programs_is_as_documented() {
    let mut schema = Schema::read();
    let (name, child, image) =
        (Name::new("schema"), Name::new("schema-child"), format!("schema-{}", std::process::id()));
    let grandchild = Name::new("schema-fork");
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "content").unwrap();
    let bundle = folder.path().join("bundle").to_str().unwrap().to_owned();
    let mut try_out = |heading: &str, arguments: &[&str]| {
        let arguments = [&["--json"], arguments].concat();
        let output = crate::support::throughline_with(&arguments, b"");
        let text = crate::support::text(&output.stdout);
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 1, "{arguments:?}: {text}{}", crate::support::text(&output.stderr));
        schema.holds(heading, &lines[0]);
        lines[0].clone()
    };
    let place = format!("{}:/root/", name.0);
    try_out("`image build`", &["image", "build", &image]);
    try_out("`run`, `snapshot restore`", &["run", "--name", &name.0, "--image", &image, "-d", "--", "true"]);
    try_out("`exec --detach`", &["exec", "-d", &name.0, "--", "sleep", "1000"]);
    try_out("`ps`", &["ps", &name.0]);
    try_out("`ls`", &["ls"]);
    try_out("`cp`", &["cp", file.to_str().unwrap(), &place]);
    try_out("`inspect` of a sandbox", &["inspect", &name.0]);
    let forked = try_out("`fork`", &["fork", &name.0, &grandchild.0]);
    assert_eq!(forked[0]["ok"], true, "{forked}");
    let (pool, taken) = (format!("schema-{}", std::process::id()), Name::new("schema-taken"));
    try_out("`pool create`", &["pool", "create", &name.0, &pool, "-n", "1"]);
    try_out("`pool ls`", &["pool", "ls"]);
    try_out("`pool take`", &["pool", "take", &pool, &taken.0]);
    try_out("`pool take`", &["pool", "take", "no-such-pool"]);
    try_out("`rm`, `image rm`, `snapshot rm`, `pool rm`", &["pool", "rm", &pool]);
    try_out("`snapshot create`", &["snapshot", "create", &name.0, &bundle]);
    try_out("`snapshot verify`", &["snapshot", "verify", &bundle]);
    try_out("`inspect` of a bundle", &["inspect", &bundle]);
    try_out("`run`, `snapshot restore`", &["snapshot", "restore", &bundle, "--name", &child.0, "--checkpoint", "1h"]);
    crate::support::until(|| {
        let known = try_out("`inspect` of a sandbox", &["inspect", &child.0]);
        !known["sandbox"]["checkpoints"]["last"].is_null()
    });
    try_out("`pause`, `resume`", &["pause", &child.0]);
    try_out("`inspect` of a sandbox", &["inspect", &child.0]);
    try_out("`pause`, `resume`", &["resume", &child.0]);
    try_out("`snapshot create`", &["snapshot", "create", &child.0, &child.0]);
    // One that cannot be read is listed all the same.
    let damaged = throughline_sandbox::snapshots().join(&grandchild.0);
    std::fs::create_dir(&damaged).unwrap();
    let listed = try_out("`snapshot ls`", &["snapshot", "ls"]);
    std::fs::remove_dir(&damaged).unwrap();
    let row = listed.as_array().unwrap().iter().find(|row| row["name"] == grandchild.0.as_str()).unwrap();
    assert!(row["manifest"].is_null() && row["error"].is_string(), "{row}");
    assert!(listed.as_array().unwrap().iter().any(|row| row["name"] == child.0.as_str()), "{listed}");
    try_out("`rm`, `image rm`, `snapshot rm`, `pool rm`", &["snapshot", "rm", &child.0]);
    printed(["exec", &child.0, "--", "sh", "-c", "poweroff -f >/dev/null 2>&1 &"]);
    let ended = try_out("`wait`, `kill`", &["wait", &child.0]);
    assert!(ended["exit"]["reason"].is_string(), "{ended}");
    let killed = try_out("`wait`, `kill`", &["kill", &name.0]);
    assert!(!killed["exit"]["reason"].is_null(), "{killed}");
    try_out("`inspect` of a sandbox", &["inspect", &name.0]);
    try_out("`ls`", &["ls"]);
    try_out("`rm`, `image rm`, `snapshot rm`, `pool rm`", &["rm", &name.0]);
    try_out("`image ls`", &["image", "ls"]);
    try_out("`rm`, `image rm`, `snapshot rm`, `pool rm`", &["image", "rm", &image]);
    try_out("`doctor`", &["doctor"]);
    schema.holds("Errors", &serde_json::json!({ "error": refused(&["--json", "rm", &name.0]) }));
    schema.holds("Errors", &serde_json::json!({ "error": refused(&["--json", "no-such-verb"]) }));
    let never: Vec<_> = schema.blocks.keys().filter(|heading| !schema.used.contains(**heading)).collect();
    assert_eq!(never, [&ALONE], "nothing like these was printed");
}

/// For [`ALONE`].
pub fn prune() -> Value {
    let pruned = json(["prune", "--json"]);
    Schema::read().holds(ALONE, &pruned);
    pruned
}
