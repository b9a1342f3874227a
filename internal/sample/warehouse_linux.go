package sample

import "syscall"

// endWithUs has a process end in good order should this one be killed.
func endWithUs(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGINT }
