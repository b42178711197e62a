//! Tests of the dashboard's JSON that do not need Grafana.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::promtool;

use support::read;

fn dashboard() -> Value {
    serde_json::from_str(&read("examples/grafana/libvirt-kvm-init.json")).unwrap()
}

/// The Prometheus queries of the dashboard's panels.
pub fn queries() -> Vec<String> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().unwrap().clone());
    targets
        .map(|target| target["expr"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn dashboard_has_three_panels_with_selectable_data_source() {
    let dashboard = dashboard();
    assert!(dashboard["id"].is_null(), "Grafana must assign the id");
    assert_eq!(dashboard["templating"]["list"][0]["name"], "datasource");
    let panels = dashboard["panels"].as_array().unwrap();
    assert_eq!(panels.len(), 3);
    let mut ids = BTreeSet::new();
    let mut places = Vec::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64()), "{panel:#}");
        assert!(!panel["description"].as_str().unwrap().is_empty());
        assert_eq!(panel["datasource"]["uid"], "${datasource}");
        let number = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        let (x, y, w, h) = (number("x"), number("y"), number("w"), number("h"));
        assert!(x + w <= 24);
        for (ox, oy, ow, oh) in &places {
            let apart = x + w <= *ox || ox + ow <= x || y + h <= *oy || oy + oh <= y;
            assert!(apart, "{} overlaps another panel", panel["title"]);
        }
        places.push((x, y, w, h));
    }
}

/// The cost of a query over raw series would grow with the number of nodes.
#[test]
fn panels_query_only_recording_rules() {
    let records = promtool::records();
    for query in queries() {
        let name = query.split([' ', '{']).next().unwrap().to_owned();
        assert!(records.contains(&name), "{query}");
    }
}
