//! A check of Prometheus' text format.

/// Asserts that every sample follows its HELP and TYPE, that no metric occurs twice, and that exactly the counters end
/// in `_total`.
pub fn check_metrics(text: &str) {
    assert!(text.ends_with('\n'));
    let (mut family, mut seen) = (String::new(), Vec::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            family = rest.split(' ').next().unwrap().to_owned();
            assert!(!seen.contains(&family), "duplicate metric {family}");
            seen.push(family.clone());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, family);
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        } else {
            let name = line.split(['{', ' ']).next().unwrap();
            assert_eq!(name, family);
            line.rsplit(' ').next().unwrap().parse::<f64>().unwrap();
        }
    }
}
