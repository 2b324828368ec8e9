//! The OpenAPI document is what it was when it was last looked at.

use super::document;

/// `BASALT_UPDATE_GOLDEN=1 cargo test -p node-agent` writes it anew; the difference is to be reviewed.
#[test]
fn the_openapi_document_is_golden() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/openapi.json");
    let now = document().to_pretty_json().unwrap() + "\n";
    if std::env::var_os("BASALT_UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(golden == now, "the API changed: look at the difference and update {}", path.display());
}
