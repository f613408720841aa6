package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
)

// sockets passed in by systemd or by the lab, by name (sd_listen_fds(3)).
type sockets map[string][]*os.File

const firstPassedFD = 3

func passedSockets() sockets {
	s := sockets{}
	if os.Getenv("LISTEN_PID") != "" && os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return s
	}
	n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for i := range n {
		name := "unknown"
		if i < len(names) && names[i] != "" {
			name = names[i]
		}
		s[name] = append(s[name], os.NewFile(uintptr(firstPassedFD+i), name))
	}
	for _, v := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(v)
	}
	return s
}

// listeners of that name.
func (s sockets) listeners(name string) ([]net.Listener, error) {
	var out []net.Listener
	for _, f := range s[name] {
		l, err := net.FileListener(f)
		if err != nil {
			return nil, fmt.Errorf("use the passed socket %q: %w", name, err)
		}
		_ = f.Close() // FileListener has its own copy
		out = append(out, l)
	}
	return out, nil
}
