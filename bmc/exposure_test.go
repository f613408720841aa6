package bmc_test

import (
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"recast/bmc"
	"recast/testenv"
)

func TestExposureIsSeenWithoutALogin(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		options testenv.IPMIOptions
		want    bmc.Exposure
		tells   []string // what its findings are about
	}{
		{"ordinary", testenv.IPMIOptions{}, bmc.Exposure{IPMI20: true}, nil},
		{"suite 0", testenv.IPMIOptions{Faults: testenv.BMCFaults{CipherZero: true}}, bmc.Exposure{IPMI20: true, Cipher0: true}, []string{"suite 0"}},
		{"nobody's account", testenv.IPMIOptions{Faults: testenv.BMCFaults{Anonymous: true}}, bmc.Exposure{IPMI20: true, Anonymous: true, NoName: true}, []string{"without name and password"}},
		{"the old protocol", testenv.IPMIOptions{Faults: testenv.BMCFaults{OldProtocol: true}}, bmc.Exposure{IPMI20: true, IPMI15: true}, []string{"1.5"}},
		{"packets are lost", testenv.IPMIOptions{Seed: 1, Faults: testenv.BMCFaults{CipherZero: true, LoseIn: 0.2, LoseOut: 0.2}},
			bmc.Exposure{IPMI20: true, Cipher0: true}, []string{"suite 0"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.options.Machine = &testenv.SimMachine{}
			b := newIPMI(t, c.options)
			got, err := bmc.Expose(within(t, 20*time.Second), b.Addr())
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("-want +got\n%s", d)
			}
			found := got.Findings()
			if len(found) != len(c.tells) {
				t.Errorf("findings %q", found)
			}
			for i, about := range c.tells {
				if !strings.Contains(strings.Join(found[i:], ""), about) {
					t.Errorf("findings %q do not tell of %q", found, about)
				}
			}
			if n := b.Count("login"); n != 0 {
				t.Errorf("%d logins", n)
			}
		})
	}
}

func TestNoIPMIIsNoExposure(t *testing.T) {
	t.Parallel()
	closed, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := closed.LocalAddr().String()
	_ = closed.Close()
	if x, err := bmc.Expose(within(t, 20*time.Second), addr); err != nil || x != (bmc.Exposure{}) {
		t.Errorf("%+v, %v", x, err)
	}
	silent := newIPMI(t, testenv.IPMIOptions{Machine: &testenv.SimMachine{}, Faults: testenv.BMCFaults{Hang: true}})
	if x, err := bmc.Expose(within(t, 20*time.Second), silent.Addr()); err != nil || x != (bmc.Exposure{}) {
		t.Errorf("silent: %+v, %v", x, err)
	}
}

// TestIPMISimIsSeenAsOpenAsItIs: Debian's simulator lets in by suite 0 whoever asks, as
// ipmitool shows, and does not tell its suites.
func TestIPMISimIsSeenAsOpenAsItIs(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("ipmitool"); err != nil {
		t.Skip("needs ipmitool (apt-get install ipmitool)")
	}
	_, port := runIPMISim(t, ipmiSimChassis, "")
	at := fmt.Sprintf("127.0.0.1:%d", port)
	out, err := exec.CommandContext(within(t, 20*time.Second), "ipmitool", "-I", "lanplus", "-H", "127.0.0.1", "-p", strconv.Itoa(port),
		"-U", user, "-P", "not the password", "-C", "0", "-N", "1", "-R", "1", "power", "status").CombinedOutput()
	got, exposeErr := bmc.Expose(within(t, 20*time.Second), at)
	if exposeErr != nil {
		t.Fatal(exposeErr)
	}
	if let := err == nil; let != got.Cipher0 {
		t.Errorf("ipmitool is let in: %t (%s); we say %+v", let, out, got)
	}
	if !got.IPMI20 || !got.IPMI15 || !got.Open {
		t.Errorf("%+v: its configuration allows everything", got)
	}
	// It still lives: the client library's own try crashes it.
	if err := loginWith(t, bmc.Target{URL: "ipmi://" + at, CipherSuite: 3}, user, password); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
