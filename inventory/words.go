package inventory

import (
	"fmt"
	"math"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

var (
	// A name is a DNS label (RFC 1123 §2.1): it becomes a host name, a store key
	// and a part of URLs.
	nameGrammar = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	// Label keys and values, and location fields. No space, quote, colon or
	// control character, so that they are safe wherever they are substituted.
	labelGrammar = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)
	uuidGrammar  = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	sizeGrammar  = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]*)$`)
	// Linux's dev_valid_name, without the characters that need quoting.
	interfaceGrammar = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,14}$`)
)

// CheckName says why s cannot name an object or a secret; nil if it can.
func CheckName(s string) error {
	if nameGrammar.MatchString(s) {
		return nil
	}
	if s == "" {
		return fmt.Errorf("the name is empty")
	}
	if len(s) > 63 {
		return fmt.Errorf("the name has %d characters, at most 63 are allowed", len(s))
	}
	return fmt.Errorf("bad name %q: want lower-case letters, digits and '-', beginning and ending with a letter or digit", s)
}

var sizeUnits = map[string]float64{
	"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "PiB": 1 << 50,
	"kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15, "B": 1,
}

// ParseSize reads a number with a unit (8GiB, 500GB, 1.92TB) as bytes. The unit
// is part of it: a bare number is an error, since its unit would be a guess.
func ParseSize(s string) (int64, error) {
	m := sizeGrammar.FindStringSubmatch(s)
	if m == nil {
		return 0, fmt.Errorf("parse size %q: want a number with a unit, such as 8GiB or 500GB", s)
	}
	unit, ok := sizeUnits[m[2]]
	if !ok {
		if m[2] == "" {
			return 0, fmt.Errorf("parse size %q: the unit is missing, such as %sGiB", s, m[1])
		}
		return 0, fmt.Errorf("parse size %q: unknown unit %q, want KiB, MiB, GiB, TiB, PiB, kB, MB, GB, TB, PB or B", s, m[2])
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil || v*unit > 1<<53 {
		return 0, fmt.Errorf("parse size %q: larger than 8 PiB", s)
	}
	bytes := math.Round(v * unit)
	if bytes < 1 {
		return 0, fmt.Errorf("parse size %q: it is zero", s)
	}
	return int64(bytes), nil
}

func parseDuration(s string, least, most time.Duration) (Duration, error) {
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		return 0, fmt.Errorf("parse duration %q: want a number with a unit, such as 90s, 20m or 1h30m", s)
	case d < least:
		return 0, fmt.Errorf("duration %q is too short: at least %s", s, least)
	case d > most:
		return 0, fmt.Errorf("duration %q is too long: at most %s", s, most)
	}
	return Duration(d), nil
}

func parseAddr4(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is4() {
		return netip.Addr{}, fmt.Errorf("parse address %q: want an IPv4 address such as 10.20.0.15", s)
	}
	return a, nil
}

func parseAddr6(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || !routable6(a) {
		return netip.Addr{}, fmt.Errorf("parse address %q: want an IPv6 address such as 2001:db8:20::15, not of the link only", s)
	}
	return a, nil
}

// parseAddr takes an address of the subnet's family, either where that is not known.
func parseAddr(s string, subnet netip.Prefix) (netip.Addr, error) {
	a, err := parseAddr6(s)
	if subnet.Addr().Is6() || !subnet.IsValid() && err == nil {
		return a, err
	}
	return parseAddr4(s)
}

// routable6 excludes what cannot be a host's address beyond its link, and IPv4
// in disguise.
func routable6(a netip.Addr) bool {
	return a.Is6() && !a.Is4In6() && a.Zone() == "" && !a.IsLinkLocalUnicast() && !a.IsMulticast() && !a.IsUnspecified() && !a.IsLoopback()
}

// routable4 excludes what no host can have: 0.0.0.0/8, multicast and above. Loopback is
// where a server is tried out.
func routable4(a netip.Addr) bool {
	return a.Is4() && a.As4()[0] != 0 && a.As4()[0] < 224
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	least, most := 8, 30
	if p.Addr().Is6() {
		least, most = 32, 126
	}
	switch {
	case err != nil || !routable4(p.Addr()) && !routable6(p.Addr()):
		return netip.Prefix{}, fmt.Errorf("parse subnet %q: want a subnet such as 10.20.0.0/24 or 2001:db8:20::/64", s)
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("subnet %q has bits set behind the mask: write %s", s, p.Masked())
	case p.Bits() < least || p.Bits() > most:
		return netip.Prefix{}, fmt.Errorf("subnet %q: want a mask from /%d to /%d", s, least, most)
	}
	return p, nil
}

// lastAddr is the last address of a prefix, which is IPv4's broadcast address.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func parseRange(s string, subnet netip.Prefix) (AddrRange, error) {
	first, last, ok := strings.Cut(s, "-")
	if !ok {
		return AddrRange{}, fmt.Errorf("parse range %q: want first-last, such as 10.20.0.100-10.20.0.199", s)
	}
	var r AddrRange
	var err error
	if r.First, err = parseAddr(strings.TrimSpace(first), subnet); err != nil {
		return AddrRange{}, err
	}
	if r.Last, err = parseAddr(strings.TrimSpace(last), subnet); err != nil {
		return AddrRange{}, err
	}
	if r.Last.Less(r.First) {
		return AddrRange{}, fmt.Errorf("range %q ends before it begins", s)
	}
	return r, nil
}

func parseIntOrPercent(s string) (IntOrPercent, error) {
	digits, percent := strings.CutSuffix(s, "%")
	v, err := strconv.Atoi(digits)
	switch {
	case err != nil:
		return IntOrPercent{}, fmt.Errorf("parse %q: want a count such as 3 or a percentage such as 25%%", s)
	case v < 1:
		return IntOrPercent{}, fmt.Errorf("%q would never let a machine start: want at least 1", s)
	case percent && v > 100:
		return IntOrPercent{}, fmt.Errorf("%q is more than all: want at most 100%%", s)
	}
	return IntOrPercent{Value: v, Percent: percent}, nil
}

// hostOf is the host a URL names, "" where it is none.
func hostOf(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// parseBMC checks the URL and returns what must be unique about it.
func parseBMC(s string) (scheme, key string, err error) {
	u, err := url.Parse(s)
	if err != nil {
		return "", "", fmt.Errorf("parse url %q: want redfish://host[:port][/systems/ID] or ipmi://host[:port]", s)
	}
	port := u.Port()
	n, portErr := strconv.Atoi(port)
	switch {
	case u.Scheme != "redfish" && u.Scheme != "ipmi":
		return "", "", fmt.Errorf("url scheme %q is not known: want redfish or ipmi", u.Scheme)
	case u.User != nil:
		return "", "", fmt.Errorf("the url holds a user: name a secret in credentials instead")
	case u.Hostname() == "":
		return "", "", fmt.Errorf("url %q has no host", s)
	case port != "" && (portErr != nil || n < 1 || n > 65535):
		return "", "", fmt.Errorf("url %q: bad port %q", s, port)
	case u.Fragment != "":
		return "", "", fmt.Errorf("url %q has a fragment: remove it", s)
	case u.Scheme == "ipmi" && (u.Path != "" && u.Path != "/" || u.RawQuery != ""):
		return "", "", fmt.Errorf("url %q: an ipmi url is only ipmi://host[:port]", s)
	}
	for name := range u.Query() {
		if name != "system" {
			return "", "", fmt.Errorf("url %q: unknown parameter %q, only system is known", s, name)
		}
	}
	if port == "" {
		port = map[string]string{"redfish": "443", "ipmi": "623"}[u.Scheme]
	}
	return u.Scheme, strings.ToLower(u.Hostname()) + " " + port + strings.TrimSuffix(u.Path, "/") + "?" + u.Query().Get("system"), nil
}
