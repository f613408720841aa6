package bmc

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"recast/inventory"
)

// Secret is a password. It prints as "***" wherever a value may end up by
// accident: fmt, slog, JSON, YAML. Reveal is the one way to its text.
type Secret string

// Reveal is the password itself, for the wire only.
func (s Secret) Reveal() string { return string(s) }

func (s Secret) String() string               { return "***" }
func (s Secret) GoString() string             { return "***" }
func (s Secret) LogValue() slog.Value         { return slog.StringValue("***") }
func (s Secret) MarshalText() ([]byte, error) { return []byte("***"), nil }

// Target says where a BMC is and how to be believed by it.
type Target struct {
	// URL is redfish://host[:port][/redfish/v1/Systems/ID] (443) or
	// ipmi://host[:port] (623). "?system=ID" is another way to name the system
	// of a BMC that has several; without either it must have exactly one.
	URL      string
	User     string
	Password Secret
	// Pin is the SHA-256 of the BMC's leaf certificate (Redfish). Without it
	// nothing is sent; the error shows what the BMC presents.
	Pin inventory.Digest
	// HostKey is the fingerprint of its SSH host key, SHA256:… as ssh-keygen -l shows
	// it. By SSH a console is opened with it alone.
	HostKey string
	// CipherSuite for IPMI: 0 means 17 (SHA-256). 3 (SHA-1) only where it is
	// asked for here: there is no fallback. Nothing else is accepted.
	CipherSuite int
	// Credential tells which user and password these are, e.g. name and version of
	// the secret: setting the same ones again is a reason to try them again.
	Credential string
	// Facts learned of this BMC before; the zero value is none.
	Facts Facts
	// Bad counts the answers that are not believed; nil counts none.
	Bad *BadAnswers
	// Log gets requests at debug level; nil discards.
	Log *slog.Logger

	// board has the limits, where a Fleet dials.
	board *board
	// hurry divides every wait, in tests.
	hurry int
}

// wait is how long to wait for d.
func (t Target) wait(d time.Duration) time.Duration { return d / time.Duration(max(t.hurry, 1)) }

// Split reads a credential secret of the form "user:password".
func Split(credential string) (user string, password Secret, err error) {
	user, pass, ok := strings.Cut(credential, ":")
	if !ok || user == "" {
		return "", "", errors.New(`read BMC credentials: want "user:password"`)
	}
	return user, Secret(pass), nil
}

// address is a parsed Target.URL.
type address struct {
	scheme string // redfish | ipmi
	host   string // without brackets
	port   int
	system string // Redfish: id, or path when it starts with "/"
}

// hostPort is bracketed where it must be: the libraries below format host and
// port by themselves and forget IPv6.
func (a address) hostPort() string { return net.JoinHostPort(a.host, strconv.Itoa(a.port)) }

// bracketed is the host alone, as it stands in a URL.
func (a address) bracketed() string {
	if strings.Contains(a.host, ":") {
		return "[" + a.host + "]"
	}
	return a.host
}

// Address is the driver that a Target's URL chooses, redfish or ipmi, and where the
// BMC is: host and port.
func Address(rawURL string) (driver, host string, port int, err error) {
	a, err := parseURL(rawURL)
	return a.scheme, a.host, a.port, err
}

// parseURL validates a Target's URL.
func parseURL(raw string) (address, error) {
	bad := func(why string) (address, error) {
		return address{}, fmt.Errorf("parse BMC url %q: %s", raw, why)
	}
	u, err := url.Parse(raw)
	if err != nil {
		// url.Error repeats its input, which may hold a password.
		return address{}, errors.New("parse BMC url: want redfish://host[:port] or ipmi://host[:port]")
	}
	if u.User != nil {
		u.User = nil
		raw = u.String()
		return bad("a password does not belong in a url; name a secret in bmc.credentials")
	}
	a := address{scheme: u.Scheme, host: u.Hostname()}
	switch u.Scheme {
	case "redfish":
		a.port = 443
	case "ipmi":
		a.port = 623
	default:
		return bad("want redfish://host[:port] or ipmi://host[:port]")
	}
	if a.host == "" {
		return bad("it names no host")
	}
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return bad("the port must be 1-65535")
		}
		a.port = int(n)
	}
	path := strings.TrimSuffix(u.Path, "/")
	switch {
	case path == "" || path == "/redfish/v1" && a.scheme == "redfish":
	case a.scheme == "ipmi":
		return bad("an ipmi url has no path")
	case len(path) > len("/systems/") && strings.EqualFold(path[:len("/systems/")], "/systems/"):
		a.system = path[len("/systems/"):]
	case strings.HasPrefix(path, "/redfish/v1/Systems/"):
		a.system = path
	default:
		return bad("the path must be /redfish/v1/Systems/ID")
	}
	if q := u.Query().Get("system"); q != "" && a.scheme == "redfish" {
		a.system = q
	}
	return a, nil
}
