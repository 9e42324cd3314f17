//! `shell`: a command line, or a program and its arguments.

use ado_proto::spec::Input;

use super::Plan;

pub(super) fn plan(input: &Input) -> Plan {
    let argv = match input {
        Input::Text(text) => vec!["/bin/sh".into(), "-c".into(), text.clone()],
        Input::Argv(argv) => argv.clone(),
    };
    Plan::Process { argv }
}
