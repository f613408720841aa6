package dhcp

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Owner is one process that holds a port of this network namespace.
type Owner struct {
	PID  int        // 0: another user's, which only root may see
	Name string     // as ps shows it
	Exe  string     // path of its program; "" where it cannot be read
	Addr netip.Addr // it is bound to; unspecified for all
}

func (o Owner) String() string {
	if o.PID == 0 {
		return "a process that only root may see"
	}
	return fmt.Sprintf("%s (pid %d)", o.Name, o.PID)
}

// PortOwners lists who holds a port; proto is udp or tcp, of which only
// listeners count.
func PortOwners(proto string, port int) []Owner {
	inodes := map[string]netip.Addr{}
	for _, table := range []string{"/proc/net/" + proto, "/proc/net/" + proto + "6"} {
		f, err := os.Open(table)
		if err != nil {
			continue
		}
		sockets(f, proto == "tcp", port, inodes)
		f.Close()
	}
	if len(inodes) == 0 {
		return nil
	}
	var owners []Owner
	seen := map[string]bool{} // by pid and address
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		target, err := os.Readlink(fd)
		addr, ok := inodes[target]
		if err != nil || !ok {
			continue
		}
		seen[target] = true
		text := strings.Split(fd, "/")[2]
		key := text + " " + addr.String()
		if seen[key] {
			continue
		}
		seen[key] = true
		pid, _ := strconv.Atoi(text)
		name, _ := os.ReadFile("/proc/" + text + "/comm")
		exe, _ := os.Readlink("/proc/" + text + "/exe")
		owners = append(owners, Owner{PID: pid, Name: strings.TrimSpace(string(name)), Exe: exe, Addr: addr})
	}
	for inode, addr := range inodes {
		if !seen[inode] {
			owners = append(owners, Owner{Addr: addr})
		}
	}
	return owners
}

// sockets reads a table of /proc/net: the inodes bound to the port, and where.
func sockets(table io.Reader, listening bool, port int, into map[string]netip.Addr) {
	const listen = "0A" // TCP_LISTEN of include/net/tcp_states.h
	for lines := bufio.NewScanner(table); lines.Scan(); {
		// sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode …
		col := strings.Fields(lines.Text())
		if len(col) < 10 || listening && col[3] != listen {
			continue
		}
		host, hex, _ := strings.Cut(col[1], ":")
		if p, err := strconv.ParseUint(hex, 16, 16); err == nil && int(p) == port {
			into["socket:["+col[9]+"]"] = tableAddr(host)
		}
	}
}

// tableAddr reads an address as /proc/net prints it: words of 32 bits in the
// machine's order.
func tableAddr(s string) netip.Addr {
	b, err := hex.DecodeString(s)
	if err != nil || len(b)%4 != 0 {
		return netip.Addr{}
	}
	for w := b; len(w) > 0; w = w[4:] {
		binary.NativeEndian.PutUint32(w, binary.BigEndian.Uint32(w))
	}
	a, _ := netip.AddrFromSlice(b)
	return a.Unmap()
}

// PortOwner names the processes that hold a UDP port, but the one that asks, which may
// have it on other interfaces: "dnsmasq (pid 812)". Empty when it cannot be told, as for
// other users' processes without root.
func PortOwner(port, but int) string {
	var names []string
	for _, o := range PortOwners("udp", port) {
		if o.PID != 0 && o.PID != but {
			names = append(names, o.String())
		}
	}
	return strings.Join(names, ", ")
}
