package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"recast/inventory"
)

// Args is what the boot script said to the ramdisk on the kernel's command
// line. It is public: nothing in it but the nonce is worth anything, and the
// nonce works once.
type Args struct {
	// URL of the agent API, https://HOST:PORT without a path.
	URL string
	// CA is the SHA-256 of the DER of the only CA certificate to trust.
	CA inventory.Digest
	// Time is the server's clock when it rendered the script; zero when it did not say.
	Time time.Time
	// MAC of the interface the firmware netbooted from; "" when unknown.
	MAC inventory.MAC
	// VLAN is the tag that frames of the interface have; 0: none.
	VLAN int
	// IP and Routes of the interface, where no DHCP gives them; zero: it does.
	IP     netip.Prefix
	Routes []inventory.Route
	// Nonce claims an armed machine; Discover lets a stranger post one inventory.
	// Exactly one of them is set.
	Nonce, Discover string
	// Syslog is where console lines go too; zero: nowhere.
	Syslog netip.AddrPort
	// Trace of the attempt, as the server's logs name it; "" none.
	Trace string
}

// ParseArgs picks recast's arguments out of a kernel command line and leaves
// everybody else's alone. An argument that is given twice counts as its last,
// as the kernel itself does it.
func ParseArgs(cmdline string) (Args, error) {
	var a Args
	for _, word := range strings.Fields(cmdline) {
		rest, ours := strings.CutPrefix(word, "recast.")
		if !ours {
			continue
		}
		key, value, _ := strings.Cut(rest, "=")
		if err := a.set(key, strings.Trim(value, `"`)); err != nil {
			return Args{}, fmt.Errorf("read kernel argument recast.%s: %w", key, err)
		}
	}
	switch {
	case a.URL == "":
		return Args{}, fmt.Errorf("read kernel arguments: recast.url=https://HOST:PORT is missing; the boot script gives it")
	case a.CA == "":
		return Args{}, fmt.Errorf("read kernel arguments: recast.ca=sha256:… is missing; the boot script gives it")
	case (a.Nonce == "") == (a.Discover == ""):
		return Args{}, fmt.Errorf("read kernel arguments: want exactly one of recast.nonce= and recast.discover=")
	}
	return a, nil
}

// longestArg has room for the longest token; x86's kernel takes 2048 in all.
const longestArg = 512

func (a *Args) set(key, value string) error {
	if len(value) > longestArg {
		return fmt.Errorf("it is longer than %d characters", longestArg)
	}
	var err error
	switch key {
	case "url":
		u, err := url.Parse(value)
		if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || (u.Path != "" && u.Path != "/") {
			return fmt.Errorf("%q is not https://HOST:PORT", value)
		}
		a.URL = "https://" + u.Host
	case "ca":
		a.CA, err = inventory.ParseDigest(value)
	case "time":
		sec, perr := strconv.ParseInt(value, 10, 64)
		if perr != nil || sec <= 0 {
			return fmt.Errorf("%q is not a number of seconds since 1970", value)
		}
		a.Time = time.Unix(sec, 0)
	case "mac":
		if value == "" {
			a.MAC = ""
			return nil
		}
		a.MAC, err = inventory.ParseMAC(value)
	case "vlan":
		if a.VLAN, err = strconv.Atoi(value); err != nil || a.VLAN < 1 || a.VLAN > 4094 {
			return fmt.Errorf("%q is no VLAN: want 1 to 4094", value)
		}
	case "ip":
		if a.IP, err = netip.ParsePrefix(value); err == nil && !a.IP.Addr().Is4() {
			return fmt.Errorf("%q is no IPv4 address", value)
		}
	case "route":
		to, via, _ := strings.Cut(value, ",")
		var r inventory.Route
		if r.To, err = netip.ParsePrefix(to); err == nil {
			r.Via, err = netip.ParseAddr(via)
		}
		if err == nil && (!r.To.Addr().Is4() || !r.Via.Is4()) {
			return fmt.Errorf("%q is no IPv4 route", value)
		}
		r.To = r.To.Masked()
		a.Routes = append(a.Routes, r)
	case "syslog":
		if a.Syslog, err = netip.ParseAddrPort(value); err != nil {
			return fmt.Errorf("%q is not ADDRESS:PORT", value)
		}
	case "trace":
		a.Trace, err = token(value)
	case "nonce":
		a.Nonce, err = token(value)
	case "discover":
		a.Discover, err = token(value)
	}
	// A newer server may say more than this agent knows; what it needs is
	// checked by the caller.
	return err
}

// token accepts what base64url, hex and dotted tokens are made of.
func token(s string) (string, error) {
	if s == "" {
		return "", errors.New("it is empty")
	}
	for _, c := range s {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.ContainsRune("-_.~=", c):
		default:
			return "", fmt.Errorf("character %q does not belong into it", c)
		}
	}
	return s, nil
}
