package main

import "syscall"

// leash gives a child a process group of its own, and has the kernel end it
// when this process dies.
func leash() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
