package testenv

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"recast/inventory"
)

// From the relay's packet to the script: DHCP learns who is behind a declared port,
// the engine hears of it through the store, and both know it after a kill.
func TestMachineKnownByItsPortIsServedByTheWholeServer(t *testing.T) {
	n := netnsForTest(t)
	if _, err := exec.LookPath("go"); err != nil && os.Getenv("RECAST_BIN") == "" {
		t.Skip("needs go in the PATH, or RECAST_BIN=/path/to/recast")
	}
	bin, err := simBuild()
	simMust(t, err)
	dir := t.TempDir()
	data, config, rack, ramdisk := filepath.Join(dir, "data"), filepath.Join(dir, "recast.yaml"), filepath.Join(dir, "rack.yaml"), filepath.Join(dir, "ramdisk")
	simMust(t, os.MkdirAll(ramdisk, 0o755))
	for _, f := range []string{"vmlinuz", "initrd.img"} {
		simMust(t, os.WriteFile(filepath.Join(ramdisk, f), []byte(f), 0o644))
	}
	simMust(t, os.WriteFile(config, fmt.Appendf(nil, "data: %s\nramdisk: %s\n", data, ramdisk), 0o644))
	simMust(t, os.WriteFile(rack, []byte(`apiVersion: recast/v1
kind: Network
metadata: {name: lab}
spec: {subnet: 10.77.0.0/24, dhcp: authoritative, pool: 10.77.0.100-10.77.0.199, force: true}
---
apiVersion: recast/v1
kind: Machine
metadata: {name: m7}
spec: {nics: [{port: {circuit: Ethernet1/7, remote: sw-r1}, network: lab, ip: 10.77.0.17}]}
`), 0o644))

	recast := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(bin, append([]string{"--context", filepath.Join(data, "local.json")}, args...)...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		simMust(t, n.Start(cmd))
		if err := cmd.Wait(); err != nil {
			t.Fatalf("recast %s: %v: %s", strings.Join(args, " "), err, out.String())
		}
		return out.String()
	}
	logFile := filepath.Join(dir, "server.log")
	serve := func() (kill func()) {
		t.Helper()
		_ = os.Remove(filepath.Join(data, "local.json"))
		log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		simMust(t, err)
		defer log.Close()
		cmd := exec.Command(bin, "serve", "--config", config)
		cmd.Stdout, cmd.Stderr = log, log
		simMust(t, n.Start(cmd))
		await(t, "the server is up", time.Minute, func() bool {
			text, _ := os.ReadFile(logFile)
			_, err := os.Stat(filepath.Join(data, "local.json"))
			return strings.Contains(string(text), "msg=serving") && err == nil
		})
		return func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
	}
	defer func() {
		if text, _ := os.ReadFile(logFile); t.Failed() {
			t.Logf("the server said:\n%s", text)
		}
	}()

	h, err := n.AddNeighbour("relay", NeighbourLeg{NetBridge, netip.MustParsePrefix("10.77.0.2/24")})
	simMust(t, err)
	defer func() { simMust(t, h.Close()) }()
	var relay net.PacketConn
	simMust(t, NetDo(h.Name, func() (err error) { relay, err = net.ListenPacket("udp4", "10.77.0.2:67"); return err }))
	defer relay.Close()
	xid := uint32(0)
	// ask sends a message as the relay does until the server answers it.
	ask := func(kind dhcpv4.MessageType, change ...func(*dhcpv4.DHCPv4)) *dhcpv4.DHCPv4 {
		t.Helper()
		xid++
		p := &dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootRequest, HWType: 1, ClientHWAddr: net.HardwareAddr{0x52, 0x54, 0, 0, 0, 7}, HopCount: 1,
			TransactionID: dhcpv4.TransactionID{0, 0, 0, byte(xid)}, GatewayIPAddr: net.IPv4(10, 77, 0, 2), Options: dhcpv4.Options{
				53: {byte(kind)}, 60: []byte("PXEClient:Arch:00007:UNDI:003016"), 93: {0, 7}}}
		for _, f := range change {
			f(p)
		}
		buf := make([]byte, 2048)
		for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
			_, err := relay.WriteTo(p.ToBytes(), &net.UDPAddr{IP: net.IPv4(10, 77, 0, 1), Port: 67})
			simMust(t, err)
			_ = relay.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
			for {
				m, _, err := relay.ReadFrom(buf)
				if err != nil {
					break
				}
				if reply, err := dhcpv4.FromBytes(buf[:m]); err == nil && reply.OpCode == dhcpv4.OpcodeBootReply && reply.TransactionID == p.TransactionID {
					return reply
				}
			}
		}
		t.Fatalf("no answer to %s", p.Summary())
		return nil
	}
	atPort := func(p *dhcpv4.DHCPv4) { p.Options[82] = []byte("\x01\x0bEthernet1/7\x02\x05sw-r1") }
	takes := func(p *dhcpv4.DHCPv4) {
		p.Options[50], p.Options[54] = []byte{10, 77, 0, 17}, []byte{10, 77, 0, 1}
	}

	kill := serve()
	recast("apply", rack, "--yes")
	if offer := ask(dhcpv4.MessageTypeDiscover, atPort); offer.YourIPAddr.String() != "10.77.0.17" {
		t.Fatalf("offered %s", offer.Summary())
	}
	if ack := ask(dhcpv4.MessageTypeRequest, atPort, takes); ack.MessageType() != dhcpv4.MessageTypeAck || !bytes.Equal(ack.Options[82], []byte("\x01\x0bEthernet1/7\x02\x05sw-r1")) {
		t.Fatalf("answered %s", ack.Summary())
	}
	// The engine hears of the lease by the store.
	var leases []inventory.Lease
	for deadline := time.Now().Add(20 * time.Second); len(leases) == 0 && time.Now().Before(deadline); {
		simMust(t, json.Unmarshal([]byte(recast("get", "leases", "-o", "json")), &leases))
	}
	if len(leases) != 1 || leases[0].Machine != "m7" || leases[0].Port == nil || leases[0].Port.Circuit != "Ethernet1/7" || leases[0].Port.Remote != "sw-r1" {
		t.Errorf("leases %+v", leases)
	}
	recast("inspect", "m7")
	// script is what the address gets as its boot script, in which the engine says whose it is.
	script := func() string {
		t.Helper()
		var c net.Conn
		simMust(t, NetDo(h.Name, func() (err error) { c, err = net.Dial("tcp4", "10.77.0.1:8080"); return err }))
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, err := io.WriteString(c, "GET /boot/script?mac=52-54-00-00-00-07&arch=x86_64.efi&try=0 HTTP/1.0\r\n\r\n")
		simMust(t, err)
		text, err := io.ReadAll(c)
		simMust(t, err)
		return string(text)
	}
	awaitScript := func(when string) {
		t.Helper()
		await(t, "its script "+when, 20*time.Second, func() bool {
			text := script()
			return strings.Contains(text, "recast: m7: starting the ramdisk") && strings.Contains(text, "recast.nonce=")
		})
	}
	awaitScript("before the kill")

	kill()
	kill = serve()
	defer func() { kill() }()
	// It is known by its address from now on: where it renews, no relay says the port.
	if offer := ask(dhcpv4.MessageTypeDiscover); offer.YourIPAddr.String() != "10.77.0.17" {
		t.Errorf("after the kill it was offered %s", offer.Summary())
	}
	awaitScript("after the kill")
}
