package main

import (
	"os"
	"strconv"
	"strings"
	"syscall"
)

// releaseProgram gives back the pages of this program's own file that only starting
// needed: half of them. Whichever is needed after all comes back from the page
// cache. It is an attempt: if it fails, the pages stay.
func releaseProgram() {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return
	}
	var from, to uint64
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line)
		switch {
		case len(f) >= 5 && !strings.HasSuffix(f[0], ":"): // FROM-TO rwxp OFFSET DEV INODE PATH
			a, b, _ := strings.Cut(f[0], "-")
			from, _ = strconv.ParseUint(a, 16, 64)
			to, _ = strconv.ParseUint(b, 16, 64)
			if strings.Contains(f[1], "w") || strings.Join(f[5:], " ") != exe {
				to = 0
			}
		case to > from && f[0] == "Anonymous:" && f[1] == "0": // nothing was written to it
			_, _, _ = syscall.Syscall(syscall.SYS_MADVISE, uintptr(from), uintptr(to-from), syscall.MADV_DONTNEED)
		}
	}
}
