//! What is wrong on purpose is in the simulator only.

use branchline_tests::sim::defect::Defect;
use std::collections::BTreeSet;

/// Which of these words a file has, wherever they stand.
fn found(file: &str, words: &[&'static str]) -> BTreeSet<&'static str> {
    let bytes = std::fs::read(file).unwrap_or_else(|e| panic!("{file}: {e}"));
    let pair = |word: &[u8]| usize::from(u16::from_be_bytes([word[0], word[1]]));
    let mut begins: Vec<Vec<&'static str>> = vec![Vec::new(); 1 << 16];
    words.iter().for_each(|word| begins[pair(word.as_bytes())].push(word));
    let mut found = BTreeSet::new();
    for (at, two) in bytes.windows(2).enumerate() {
        for word in &begins[pair(two)] {
            if bytes[at..].starts_with(word.as_bytes()) {
                found.insert(*word);
            }
        }
    }
    found
}

#[test]
fn no_defect_is_in_what_production_runs() {
    let words: Vec<&'static str> = Defect::all().into_iter().map(|(name, _)| name).collect();
    assert!(words.len() >= 35, "{words:?}");
    let simulator = found(env!("CARGO_BIN_EXE_simulate"), &words);
    let missed: Vec<_> = words.iter().filter(|word| !simulator.contains(*word)).collect();
    assert!(missed.is_empty(), "the search does not find {missed:?} where they are");
    // The same entry as the operator's command, with every node in it.
    let production = found(env!("CARGO_BIN_EXE_branchline-under-test"), &words);
    assert!(production.is_empty(), "these defects are compiled into production: {production:?}");
}
