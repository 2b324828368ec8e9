//! Real Open vSwitch, real Ceph and network namespaces for tests, and the tests that cross crates.
