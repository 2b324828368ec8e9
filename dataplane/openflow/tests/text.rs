//! Shows that ovs-ofctl text and values convert both ways, and that bad text gives a named error.
//!
//! How: random flows and groups that pass their checks are printed and read back; a table of wrong lines names what must be said.

mod strategies;

use openflow::flow::{Flow, Group, Match, parse_actions};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn matches_survive_text(matching in strategies::matching()) {
        matching.check().unwrap();
        let text = matching.to_string();
        prop_assert_eq!(text.parse::<Match>().map_err(|e| format!("{text}: {e}")).unwrap(), matching);
    }

    #[test]
    fn flows_survive_text(flow in strategies::flow()) {
        let text = flow.to_string();
        flow.check().map_err(|e| format!("{text}: {e:?}")).unwrap();
        prop_assert_eq!(text.parse::<Flow>().map_err(|e| format!("{text}: {e}")).unwrap(), flow);
    }

    #[test]
    fn groups_survive_text(group in strategies::group()) {
        let text = group.to_string();
        group.check().map_err(|e| format!("{text}: {e:?}")).unwrap();
        prop_assert_eq!(text.parse::<Group>().map_err(|e| format!("{text}: {e}")).unwrap(), group);
    }

    #[test]
    fn any_text_parses_or_fails(text in "[a-z0-9_=:/.,()\\[\\]>+ -]{0,80}") {
        let _ = text.parse::<Flow>();
        let _ = text.parse::<Group>();
        let _ = text.parse::<Match>();
        let _ = parse_actions(&text);
    }
}

/// Shows that each kind of mistake is named.
#[test]
fn mistakes_are_named() {
    let cases = [
        ("table=1", "actions needs a value"),
        ("tcp,tp_dst=99999 actions=drop", "\"99999\" is not a value for tp_dst"),
        ("tp_dst=80 actions=drop", "tp_dst needs a match on tcp"),
        ("ip,nw_src=10.0.0.0/33 actions=drop", "\"33\" is not a value for nw_src"),
        ("nw_src=10.0.0.1 actions=drop", "needs a match on ip"),
        ("nonsense=1 actions=drop", "no field is called \"nonsense\""),
        ("ip actions=fly", "\"fly\" is not known in actions"),
        ("ip actions=ct(commit", "unbalanced parentheses"),
        ("ip actions=set_field:1->conj_id", "conj_id cannot be written here"),
        ("ip actions=set_field:1->ct_mark", "ct_mark cannot be written here"),
        ("ip actions=set_field:300->nw_ttl", "nw_ttl cannot take value 0x12c"),
        ("actions=set_field:1.2.3.4->ip_src", "needs a match on ip"),
        ("table=5 actions=goto_table:5", "the table must be later"),
        ("actions=goto_table:5,output:1", "output:1 cannot stand after what precedes it"),
        ("actions=conjunction(1,1/2),output:1", "beside conjunction"),
        ("actions=conjunction(1,3/2)", "clauses must number"),
        ("actions=move:reg0->reg1[0..3]", "move from 32 bits to 4 bits"),
        ("actions=load:1->NXM_NX_REG0[30..40]", "bits 30 to 30 + 11 are not inside it"),
    ];
    for (text, expected) in cases {
        let error = text.parse::<Flow>().expect_err(text);
        let mut said = error.to_string();
        if let Some(cause) = std::error::Error::source(&error) {
            said = format!("{said}: {cause}");
        }
        assert!(said.contains(expected), "{text}: {said:?} does not say {expected:?}");
    }
}
