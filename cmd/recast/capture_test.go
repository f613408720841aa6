package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"recast/dhcp"
	"recast/inventory"
	"recast/provision"
)

// A machine of the wire boots as far as its script: with a real DHCP client, a
// real TFTP fetch and a real HTTP fetch, and logs a line. What was captured is read
// by tshark, and holds the exchange and not the secret; the timeline tells it all.
func TestCaptureOfARealBoot(t *testing.T) {
	if !namespace(t, map[string]string{"ip": "iproute2", "nsenter": "util-linux", "udhcpc": "udhcpc", "curl": "curl", "logger": "bsdutils", "tshark": "tshark"}) {
		return
	}
	data := t.TempDir()
	if err := os.WriteFile(filepath.Join(data, "recast.yaml"), []byte("boot: 0.0.0.0:8080\nagent: 0.0.0.0:8443\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	site := filepath.Join(data, "site.yaml")
	if err := os.WriteFile(site, []byte("apiVersion: recast/v1\nkind: Network\nmetadata: {name: rack1}\nspec: {subnet: 10.20.0.0/24, dhcp: authoritative, force: true}\n---\n"+
		"apiVersion: recast/v1\nkind: Machine\nmetadata: {name: m1}\nspec:\n  nics: [{mac: \"52:54:00:00:00:05\", network: rack1, ip: 10.20.0.15}]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tool(t, "ip", "link", "set", "lo", "up")
	station := exec.Command("sleep", "100")
	station.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := station.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = station.Process.Kill(); _ = station.Wait() })
	ns := fmt.Sprintf("--net=/proc/%d/ns/net", station.Process.Pid)
	tool(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(station.Process.Pid))
	tool(t, "ip", "addr", "add", "10.20.0.1/24", "dev", "eth0")
	tool(t, "ip", "link", "set", "eth0", "up")
	tool(t, "nsenter", ns, "ip", "link", "set", "eth0", "address", "52:54:00:00:00:05", "up")
	t.Setenv("RECAST_DATA", data)
	t.Setenv("RECAST_CONFIG_DIR", t.TempDir())
	t.Setenv("RECAST_CONTEXT", "")
	startServer(t, data)
	if text, code := recast(t, nil, "apply", site, "--yes"); code != exitOK {
		t.Fatal(text)
	}
	for _, port := range []int{67, 69} {
		await(t, "its ports", func() bool { return len(dhcp.PortOwners("udp", port)) > 0 })
	}

	file := filepath.Join(data, "m1.pcap")
	cmd := exec.Command(os.Args[0], "capture", "m1", "--for", "2m", "-w", file)
	cmd.Env = append(os.Environ(), "RECAST_TEST_MAIN=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "the file's head", func() bool { st, err := os.Stat(file); return err == nil && st.Size() >= pcapHeader })
	script := filepath.Join(data, "udhcpc.sh")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n[ \"$1\" = bound ] && ip addr add $ip/24 dev $interface\nexit 0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	tool(t, "nsenter", ns, "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-s", script)
	tool(t, "nsenter", ns, "curl", "-sf", "-o", "/dev/null", "tftp://10.20.0.1/autoexec.ipxe")
	tool(t, "nsenter", ns, "curl", "-sf", "-o", "/dev/null", "http://10.20.0.1:8080/boot/script?mac=52:54:00:00:00:05&nonce=canary0123")
	tool(t, "nsenter", ns, "logger", "--server", "10.20.0.1", "--port", "514", "--udp", "--tag", "ipxe", "net0: link up")
	read := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "tshark", append([]string{"-n", "-r", file}, args...)...).Output()
		if err != nil {
			t.Fatalf("tshark %q: %v", args, err)
		}
		return string(out)
	}
	await(t, "the script on the file", func() bool {
		raw, err := os.ReadFile(file)
		return err == nil && bytes.Contains(raw, []byte("#!ipxe\nset syslog 10.20.0.1\n"))
	})
	var x provision.Explanation
	await(t, "the last line of the timeline", func() bool {
		text, _ := recast(t, nil, "explain", "m1", "-o", "json")
		return json.Unmarshal([]byte(text), &x) == nil && len(x.Timeline) > 0 && x.Timeline[len(x.Timeline)-1].Kind == "log"
	})
	var story []string
	for _, l := range x.Timeline {
		switch {
		case l.Seen == nil:
			story = append(story, l.Kind+" "+l.Text)
		case l.Seen.Kind == inventory.SawTFTP:
			story = append(story, fmt.Sprintf("%s %s whole %v by %d", l.Seen.Kind, l.Seen.Detail, l.Seen.Bytes == l.Seen.Size, l.Seen.BlockSize))
		default:
			story = append(story, fmt.Sprintf("%s %v", l.Seen.Kind, l.Seen.Server))
		}
	}
	if diff := cmp.Diff([]string{"dhcp-discover invalid IP", "dhcp-offer 10.20.0.1", "dhcp-request 10.20.0.1", "dhcp-ack 10.20.0.1",
		"tftp-transfer autoexec.ipxe whole true by 512", "boot-script invalid IP", "log ipxe: net0: link up"}, story); diff != "" {
		t.Errorf("the timeline (-want +got)\n%s", diff)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || !strings.Contains(said.String(), "Written to "+file) {
		t.Errorf("%v: %s", err, said.String())
	}
	text := read()
	for _, want := range []string{"DHCP Discover", "DHCP Offer", "DHCP Request", "DHCP ACK", "Read Request, File: autoexec.ipxe", "GET /boot/script?mac=52:54:00:00:00:05&nonce=**********", "ARP"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if bad := read("-Y", "_ws.malformed"); bad != "" {
		t.Errorf("malformed:\n%s", bad)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(raw, []byte("canary")) {
		t.Error("the secret is in the file")
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st.Mode(), err)
	}
}
