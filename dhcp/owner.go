package dhcp

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// portOwner names the processes that hold a UDP port of this network
// namespace: "dnsmasq (pid 812)". Empty when it cannot be told, as for other
// users' processes without root.
func portOwner(port int) string {
	inodes := map[string]bool{}
	for _, table := range []string{"/proc/net/udp", "/proc/net/udp6"} {
		f, err := os.Open(table)
		if err != nil {
			continue
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			// sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode …
			col := strings.Fields(lines.Text())
			if len(col) < 10 {
				continue
			}
			_, hex, _ := strings.Cut(col[1], ":")
			if p, err := strconv.ParseUint(hex, 16, 16); err == nil && int(p) == port {
				inodes["socket:["+col[9]+"]"] = true
			}
		}
		f.Close()
	}
	if len(inodes) == 0 {
		return ""
	}
	var owners []string
	seen := map[string]bool{}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		if err != nil || !inodes[target] {
			continue
		}
		pid := strings.Split(fd, "/")[2]
		if seen[pid] {
			continue
		}
		seen[pid] = true
		name, _ := os.ReadFile("/proc/" + pid + "/comm")
		owners = append(owners, fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(name)), pid))
	}
	return strings.Join(owners, ", ")
}
