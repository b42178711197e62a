//! Properties of the group file edit and of the parsers, tested with files made of fragments that are hard to parse.

use libvirt_kvm_init::formats::accounts::edit::Want;
use libvirt_kvm_init::formats::qemu_conf;
use nix::unistd::Gid;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use crate::properties::account_files;

fn fragment() -> impl Strategy<Value = Vec<u8>> {
    let known = prop::sample::select(vec![
        "kvm",
        "kvm:x:",
        "kvm:x:108:",
        "kvm:x:424:nova",
        "nova",
        "nova,",
        ",nova",
        ":",
        ",",
        "\n",
        "\n",
        "\r\n",
        " ",
        "\t",
        "#",
        "+",
        "-",
        "\0",
        "108",
        "424",
        "-1",
        "4294967295",
        "4294967296",
        "+108",
        "0108",
        "x",
        "root:x:0:\n",
        "kvm:x:424:a,b\n",
        "kvm:x:424\n",
        "a:x:1:nova\n",
        "\n+:::\n",
        "kvm:x:424:a\r\n",
    ]);
    prop_oneof![
        9 => known.prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 1..4),
    ]
}

fn file() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(fragment(), 0..24).prop_map(|parts| parts.concat())
}

/// A fixed seed, so that every run has the same cases, unless PROPTEST_RNG_SEED sets another one.
fn config() -> ProptestConfig {
    let mut config = ProptestConfig {
        cases: 4000,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(108);
    }
    config
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn edit_makes_only_the_requested_change(
        file in file(),
        gid in prop::sample::select(vec![108u32, 424, 1, u32::MAX - 1]),
        member in prop::sample::select(vec![None, Some("nova"), Some("b")]),
    ) {
        let want = Want {
            group: b"kvm",
            gid: Gid::from_raw(gid),
            member: member.map(str::as_bytes),
        };
        account_files::edit(&file, &want);
    }

    #[test]
    fn parsed_entries_agree_with_lookups(file in file()) {
        account_files::group_look_ups(&file);
        account_files::passwd_look_ups(&file);
    }

    #[test]
    fn qemu_conf_parser_handles_any_bytes(text in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Err(error) = qemu_conf::parse(&text) {
            prop_assert!(error.line <= 1 + text.iter().filter(|b| **b == b'\n').count());
        }
        qemu_conf::id_spec(&text);
    }

    #[test]
    fn qemu_conf_parser_returns_the_configured_user(user in "[a-z+0-9 #;='\\[]{0,12}", comment in "[^\r\n]{0,12}") {
        let text = format!("# {comment}\nx = [ '{comment}',\n]\nuser = \"{user}\" # {comment}\n");
        let conf = qemu_conf::parse(text.as_bytes());
        if !comment.contains('\'') {
            let setting = conf.unwrap().user.unwrap();
            prop_assert_eq!((setting.value, setting.line), (user.into_bytes(), 4));
        }
    }
}
