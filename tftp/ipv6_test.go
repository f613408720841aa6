package tftp

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// The socket that is opened without an address hears both families, and answers
// each from the address that was asked.
func TestBothFamiliesAreServed(t *testing.T) {
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		t.Skip("needs IPv6 on this machine")
	}
	s := startAt(t, ":0", Limits{})
	port := strconv.Itoa(s.addr.Port)
	for i, tc := range []struct {
		name, tool, pkg, remote string
		args                    func(out string) []string
	}{
		{"curl by IPv6", "curl", "curl", "::1", func(out string) []string {
			return []string{"-g", "-sS", "--tftp-blksize", "1468", "-o", out, "tftp://[::1]:" + port + "/snponly.efi"}
		}},
		{"tftp-hpa by IPv6", "tftp", "tftp-hpa", "::1", func(out string) []string {
			return []string{"-6", "-m", "binary", "::1", port, "-c", "get", "snponly.efi", out}
		}},
		{"curl by IPv4", "curl", "curl", "127.0.0.1", func(out string) []string {
			return []string{"-sS", "-o", out, "tftp://127.0.0.1:" + port + "/snponly.efi"}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := exec.LookPath(tc.tool); err != nil {
				t.Skipf("needs %s (apt-get install %s)", tc.tool, tc.pkg)
			}
			out := filepath.Join(t.TempDir(), "out")
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if text, err := exec.CommandContext(ctx, tc.tool, tc.args(out)...).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, loader) {
				t.Errorf("fetched %d bytes that differ: %v", len(got), err)
			}
			if o := s.observed(t, i+1); o.Remote != netip.MustParseAddr(tc.remote) || o.Error != "" || o.Bytes != int64(len(loader)) {
				t.Errorf("observed %+v", o)
			}
		})
	}
}

func TestBlocksFitTheWayByIPv6(t *testing.T) {
	here := netip.MustParseAddr("::1")
	if got := room(here, netip.AddrPortFrom(here, 9)); got != 1448 {
		t.Errorf("room over loopback, whose frames are larger than any Ethernet's: %d", got)
	}
}
