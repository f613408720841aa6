package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"recast/inventory"
)

// fleet declares n machines in racks of 40, each rack a group and a network.
func fleet(n int, image inventory.Digest) []byte {
	const rack = 40
	var b bytes.Buffer
	fmt.Fprintf(&b, "apiVersion: recast/v1\nkind: Image\nmetadata: {name: os}\nspec: {type: disk, arch: amd64, digest: %q}\n", image)
	fmt.Fprint(&b, "---\napiVersion: recast/v1\nkind: Definition\nmetadata: {name: compute}\nspec:\n  image: os\n  disk: {select: {minSize: 8GiB}}\n"+
		"  config:\n    format: cloud-init\n    userData: |\n      #cloud-config\n      hostname: ${machine.name}\n")
	for r := 0; r*rack < n; r++ {
		net := fmt.Sprintf("10.%d.%d", 20+r/256, r%256)
		fmt.Fprintf(&b, "---\napiVersion: recast/v1\nkind: Network\nmetadata: {name: rack%d}\nspec: {subnet: %s.0/24, dhcp: \"off\"}\n", r, net)
		fmt.Fprintf(&b, "---\napiVersion: recast/v1\nkind: Group\nmetadata: {name: rack%d}\nspec: {select: {rack: r%d}, definition: compute}\n", r, r)
		for u := 0; u < rack && r*rack+u < n; u++ {
			fmt.Fprintf(&b, "---\napiVersion: recast/v1\nkind: Machine\nmetadata: {name: r%du%02d}\nspec:\n  location: {rack: r%d, unit: %d}\n"+
				"  nics: [{mac: \"52:54:00:%02x:%02x:%02x\", network: rack%d, ip: %s.%d}]\n  bmc: {url: \"redfish://10.200.%d.%d\", credentials: bmc}\n",
				r, u+1, r, u+1, r/256, r%256, u, r, net, u+10, r, u+10)
		}
	}
	return b.Bytes()
}

// The server as a process with 10,000 machines that came through apply: what it
// keeps in memory, and how long a plan over all of them takes.
func BenchmarkTenThousandMachines(b *testing.B) {
	const machines = 10_000
	server, _ := workplace(b)
	img := disk(b, 5, 1)
	site := filepath.Join(b.TempDir(), "fleet.yaml")
	if err := os.WriteFile(site, fleet(machines, inventory.DigestOf(img)), 0o644); err != nil {
		b.Fatal(err)
	}
	ok := func(stdin string, args ...string) string {
		b.Helper()
		text, code := recast(b, strings.NewReader(stdin), args...)
		if code != exitOK {
			b.Fatalf("%q: %d %.2000s", args, code, text)
		}
		return text
	}
	ok("admin:pw", "secret", "set", "bmc")
	ok("", "freeze")
	before := resident(b, server.Process.Pid)
	start := time.Now()
	ok("", "apply", site, "--yes")
	apply := time.Since(start)
	if text := ok("", "get", "machines"); strings.Count(text, "\n") != machines+1 {
		b.Fatalf("%d lines", strings.Count(text, "\n"))
	}
	var took time.Duration
	n := 0
	for b.Loop() {
		start := time.Now()
		ok("", "plan", site)
		took += time.Since(start)
		n++
	}
	b.ReportMetric(apply.Seconds(), "apply-s")
	b.ReportMetric(took.Seconds()/float64(n), "plan-s")
	b.ReportMetric(resident(b, server.Process.Pid)/(1<<20), "server-MiB")
	b.ReportMetric((resident(b, server.Process.Pid)-before)/machines, "B/machine")
}

// resident memory of a process, bytes.
func resident(b *testing.B, pid int) float64 {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Skipf("needs Linux's /proc (%s)", runtime.GOOS)
	}
	for line := range strings.Lines(string(raw)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib * 1024
		}
	}
	b.Fatal("no VmRSS")
	return 0
}
