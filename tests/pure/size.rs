//! What the program may weigh: it is copied into volumes and pulled to every node.

/// 1.75 MiB, with every command.
const LIMIT: u64 = 1_835_008;

/// `make test` gives the static release binary; what cargo builds for tests is not shipped.
#[test]
fn the_release_binary_keeps_to_its_budget() {
    let Some(program) = std::env::var_os("KVM_INIT_TEST_BIN") else {
        println!("not measured: KVM_INIT_TEST_BIN names no release binary");
        return;
    };
    let size = std::fs::metadata(program).unwrap().len();
    println!("{size} bytes of {LIMIT}");
    assert!(size <= LIMIT, "{size} bytes, {} too many", size - LIMIT);
}
