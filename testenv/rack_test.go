package testenv

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"recast/inventory"
)

// rackForTest builds a rack with small disks that ends with the test.
func rackForTest(t *testing.T) *Rack {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("needs qemu-system-x86_64 (apt-get install qemu-system-x86)")
	}
	if _, err := os.Stat(qemuOVMFCode); err != nil {
		t.Skip("needs OVMF (apt-get install ovmf)")
	}
	r, err := NewRack(t.Context(), RackOptions{
		Name: fmt.Sprintf("test-%d-%d", os.Getpid(), time.Now().UnixNano()%1e6), Dir: t.TempDir(), DiskSize: 4 * osMiB,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if left, err := Nets(RackNamespace(r.Options.Name)); err != nil || len(left) != 0 {
			t.Errorf("left of the rack: %v, %v", left, err)
		}
	})
	return r
}

func TestRackIsDeclaredByItsYAML(t *testing.T) {
	r := rackForTest(t)
	declare := RackDeclare{Image: inventory.DigestOf([]byte("image")), Unknown: inventory.UnknownDiscover, Canary: "1"}
	file, err := inventory.ReadFrom("lab.yaml", strings.NewReader(r.YAML(declare)))
	if err != nil {
		t.Fatal(err)
	}
	set, err := inventory.Parse([]inventory.File{file})
	if err != nil {
		t.Fatalf("%v\n%s", err, r.YAML(declare))
	}
	if len(set.Machines) != 2 || len(set.Networks) != 1 {
		t.Fatalf("declared %d machines, %d networks; want 2 and 1", len(set.Machines), len(set.Networks))
	}
	for _, n := range r.Nodes {
		m := set.Machine(n.Name)
		switch {
		case m == nil:
			t.Errorf("%s is not declared", n.Name)
		case m.Serial != n.Serial || m.UUID != n.UUID || m.NICs[0].MAC != n.MAC || m.NICs[0].IP != n.IP:
			t.Errorf("%s is declared as %+v", n.Name, m)
		case set.GroupOf(n.Name) == nil:
			t.Errorf("%s is in no group", n.Name)
		}
	}
	if m := set.Machine("r1u02"); m != nil && m.BMC.Pin != r.Node("r1u02").Redfish.Pin() {
		t.Errorf("pin %v", m.BMC.Pin)
	}
}

func TestRackDisksHoldSomethingUnknown(t *testing.T) {
	r := rackForTest(t)
	for _, n := range r.Nodes {
		data, err := os.ReadFile(n.Disks[0].Path)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) != 4*osMiB || len(bytes.Trim(data, "\xa5")) != 0 {
			t.Errorf("disk of %s: %d bytes, not all of them 0xA5", n.Name, len(data))
		}
	}
	if r.Nodes[0].Disks[0].Discard || !r.Nodes[1].Disks[0].Discard {
		t.Error("want one disk that ignores discards and one that does not")
	}
}

func TestRackBMCsSwitchTheirMachines(t *testing.T) {
	r := rackForTest(t)
	t.Run("redfish", func(t *testing.T) {
		n := r.Node("r1u02")
		client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
			DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
				err = r.Net.Do(func() (err error) {
					conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
					return err
				})
				return conn, err
			},
		}}
		for _, step := range []struct {
			reset string
			want  bool
		}{{"On", true}, {"ForceOff", false}} {
			req, _ := http.NewRequestWithContext(t.Context(), "POST", "https://"+n.Redfish.Addr()+
				"/redfish/v1/Systems/1/Actions/ComputerSystem.Reset", strings.NewReader(`{"ResetType":"`+step.reset+`"}`))
			req.SetBasicAuth(r.BMCUser, r.BMCPassword)
			req.Header.Set("Content-Type", "application/json")
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode/100 != 2 {
				t.Fatalf("%s: %s: %s", step.reset, resp.Status, body)
			}
			await(t, "power after "+step.reset, 30*time.Second, func() bool { return n.Powered() == step.want })
		}
	})
	t.Run("ipmi", func(t *testing.T) {
		if _, err := exec.LookPath("ipmitool"); err != nil {
			t.Skip("needs ipmitool (apt-get install ipmitool)")
		}
		n := r.Node("r1u01")
		host, _, _ := net.SplitHostPort(n.IPMI.Addr())
		for _, step := range []struct {
			verb string
			want bool
		}{{"on", true}, {"off", false}} {
			cmd := exec.Command("ipmitool", "-I", "lanplus", "-C", "17", "-H", host, "-U", r.BMCUser, "-P", r.BMCPassword, "power", step.verb)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := r.Net.Start(cmd); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Fatalf("ipmitool power %s: %v: %s", step.verb, err, &out)
			}
			await(t, "power after "+step.verb, 30*time.Second, func() bool { return n.Powered() == step.want })
		}
	})
}

// TestRackServerIsReachedThroughItsSocketAlone runs this test binary as the
// server: it must find the socket as LISTEN_FDS says, and stand inside.
func TestRackServerIsReachedThroughItsSocketAlone(t *testing.T) {
	if os.Getenv("RECAST_TEST_RACK_SERVER") != "" {
		rackTestServer()
		return
	}
	r := rackForTest(t)
	start := func() *RackServer {
		t.Helper()
		// "serve --data DIR" would be taken for the test binary's own arguments.
		script := r.Options.Dir + "/recast"
		text := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = serve ] || exit 7\nexec %s -test.run='^%s$'\n", os.Args[0], t.Name())
		if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		s, err := r.Serve(RackServe{Recast: script, Env: []string{"RECAST_TEST_RACK_SERVER=1"}})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	ask := func() string {
		t.Helper()
		conn, err := net.DialTimeout("tcp", r.Operator(), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		answer, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		return string(answer)
	}
	s := start()
	if got, want := ask(), "operator sees 10.77.0.1"; got != want {
		t.Errorf("the server says %q, want %q", got, want)
	}
	s.Kill()
	if s.Err() == nil {
		t.Error("the end of a killed server is no error")
	}
	s = start() // the same port again
	if got := ask(); got == "" {
		t.Error("no answer after the restart")
	}
	if err := s.Stop(10 * time.Second); err == nil {
		t.Error("SIGTERM ended a server that does not handle it without error")
	}
}

func rackTestServer() {
	l, err := net.FileListener(os.NewFile(3, os.Getenv("LISTEN_FDNAMES")))
	if err != nil {
		panic(err)
	}
	bridge, err := net.InterfaceByName(NetBridge)
	if err != nil {
		panic(err)
	}
	addrs, err := bridge.Addrs()
	if err != nil {
		panic(err)
	}
	ip, _, _ := net.ParseCIDR(addrs[0].String())
	for {
		conn, err := l.Accept()
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(conn, "%s sees %s", os.Getenv("LISTEN_FDNAMES"), ip)
		conn.Close()
	}
}
