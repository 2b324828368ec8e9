//! A virtual machine monitor on KVM: one jailed process per VM.
