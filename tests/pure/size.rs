//! Size limit of the binary, which is copied into volumes and pulled by every node.

/// 1.75 MiB in bytes, for a binary with all commands.
const LIMIT: u64 = 1_835_008;

/// `make test` sets KVM_INIT_TEST_BIN to the static release binary; the test build of cargo is not shipped.
#[test]
fn release_binary_is_within_its_size_limit() {
    let Some(program) = std::env::var_os("KVM_INIT_TEST_BIN") else {
        println!("not measured: KVM_INIT_TEST_BIN names no release binary");
        return;
    };
    let size = std::fs::metadata(program).unwrap().len();
    println!("{size} bytes of {LIMIT}");
    assert!(
        size <= LIMIT,
        "{size} bytes exceed the limit by {}",
        size - LIMIT
    );
}
