package main

import (
	"bytes"
	"io"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"recast/inventory"
)

func TestExpositionIsAsPrometheusReadsIt(t *testing.T) {
	var b bytes.Buffer
	e := newExposition(&b)
	e.family("x_total", "counter", "What.")
	e.counts("x_total", "reason", map[string]uint64{"b": 2, "a \"q\" \\ \n": 1})
	e.sample("y", math.Inf(1))
	var h histogram
	for _, d := range []time.Duration{0, time.Millisecond, 2 * time.Millisecond, time.Hour} {
		h.observe(d)
	}
	e.histogram("z_seconds", &h, "type", "ACK")
	if err := e.flush(); err != nil {
		t.Fatal(err)
	}
	got := b.String()
	want := "# HELP x_total What.\n# TYPE x_total counter\nx_total{reason=\"a \\\"q\\\" \\\\ \\n\"} 1\nx_total{reason=\"b\"} 2\ny +Inf\n"
	if diff := cmp.Diff(want, got[:min(len(got), len(want))]); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for _, line := range []string{
		`z_seconds_bucket{type="ACK",le="0.0001"} 1`, `z_seconds_bucket{type="ACK",le="0.001"} 2`, `z_seconds_bucket{type="ACK",le="0.0025"} 3`,
		`z_seconds_bucket{type="ACK",le="300"} 3`, `z_seconds_bucket{type="ACK",le="+Inf"} 4`, `z_seconds_sum{type="ACK"} 3600.003`, `z_seconds_count{type="ACK"} 4`,
	} {
		if !strings.Contains(got, line+"\n") {
			t.Errorf("no %s in\n%s", line, got)
		}
	}
}

func TestMetersCountByKindAndResult(t *testing.T) {
	var m meters
	for _, o := range []inventory.Observation{
		{Kind: inventory.SawOffer, Took: inventory.Duration(time.Millisecond)}, {Kind: inventory.SawNak},
		{Kind: inventory.SawTFTP, Bytes: 10, Size: 10}, {Kind: inventory.SawTFTP, Size: 10, Asked: true}, {Kind: inventory.SawTFTP, Bytes: 4, Size: 10, Error: "x"},
		{Kind: inventory.SawTFTP, Size: 10, Error: "no answer"}, {Kind: inventory.SawTFTP, Error: "no such file"}, {Kind: inventory.SawFile, Bytes: 3, Size: 10, Offset: 2},
		{Kind: inventory.SawScript, Detail: "ramdisk: deploy"}, {Kind: inventory.SawScript, Detail: "local"}, {Kind: inventory.SawScript, Detail: "later"},
		{Kind: inventory.SawClaim}, {Kind: inventory.SawClaim, Error: "refused"}, {Kind: inventory.SawTLS}, {Kind: inventory.SawRelease},
	} {
		m.observe(&o)
	}
	var got []uint64
	for i := range m.tftp.ends {
		got = append(got, m.tftp.ends[i].Load())
	}
	for i := range m.scripts {
		got = append(got, m.scripts[i].Load())
	}
	got = append(got, m.dhcp[0].buckets[3].Load(), m.dhcp[2].buckets[0].Load(), uint64(m.tftp.bytes.Load()), m.file.ends[1].Load(), m.claims[0].Load(), m.claims[1].Load(), m.tls.Load(), m.asked[0].Load(), m.asked[3].Load())
	if diff := cmp.Diff([]uint64{1, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 14, 1, 1, 1, 1, 0, 1}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestMetersAllocateNothing(t *testing.T) {
	var m meters
	o := &inventory.Observation{Kind: inventory.SawAck, Took: inventory.Duration(time.Millisecond)}
	s := &inventory.Observation{Kind: inventory.SawScript, Detail: "ramdisk: deploy, attempt 1"}
	if n := testing.AllocsPerRun(1000, func() { m.observe(o); m.observe(s) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

var sampleLine = regexp.MustCompile(`^([a-z_]+)(?:\{([a-z]+="(?:[^"\\]|\\.)*",?)+\})? (\S+)$`)

// A server's page is read as Prometheus would, and by promtool where it is here.
func TestMetricsOfAServer(t *testing.T) {
	_, data := workplace(t)
	cc, err := readContext(filepath.Join(data, localContext))
	if err != nil {
		t.Fatal(err)
	}
	c, err := newClient(cc)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(bootURL(t, data) + "/boot/script?mac=52:54:00:00:00:05&arch=x86_64.efi")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	get := func(token string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, cc.URL+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := c.http.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	own, err := os.ReadFile(filepath.Join(data, "metrics.token"))
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(data, "metrics.token")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	token := strings.TrimSpace(string(own))
	for _, wrong := range []string{"", "wrong", token[:31]} {
		if code, text := get(wrong); code != http.StatusUnauthorized || !strings.Contains(text, "metrics.token") {
			t.Errorf("as %q: %d %s", wrong, code, text)
		}
	}
	if code, _ := get(cc.Token); code != http.StatusOK {
		t.Errorf("as the operator: %d", code)
	}
	// It opens nothing else.
	thief, err := newClient(clientContext{Name: "x", URL: cc.URL, CADigest: cc.CADigest, CAPEM: cc.CAPEM, Token: token})
	if err != nil {
		t.Fatal(err)
	}
	if err := thief.call(t.Context(), http.MethodGet, "/api/v1/status", nil, nil); err == nil {
		t.Error("the token of metrics opens the API")
	}

	code, text := get(token)
	if code != http.StatusOK {
		t.Fatal(code, text)
	}
	types := map[string]string{}
	seen := map[string]bool{}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if f := strings.Fields(line); strings.HasPrefix(line, "# TYPE ") {
			types[f[2]] = f[3]
			continue
		} else if strings.HasPrefix(line, "# HELP ") {
			continue
		}
		m := sampleLine.FindStringSubmatch(line)
		if m == nil {
			t.Errorf("no sample: %q", line)
			continue
		}
		if _, err := strconv.ParseFloat(m[3], 64); err != nil {
			t.Errorf("%q: %v", line, err)
		}
		family := m[1]
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base, ok := strings.CutSuffix(family, suffix); ok && types[base] == "histogram" {
				family = base
			}
		}
		if types[family] == "" {
			t.Errorf("%q has no type", line)
		}
		key := strings.TrimSuffix(line, m[3])
		if seen[key] {
			t.Errorf("%q is there twice", key)
		}
		seen[key] = true
		for _, secret := range []string{token, cc.Token, "52:54:00"} {
			if strings.Contains(line, secret) {
				t.Errorf("%q tells too much", line)
			}
		}
	}
	for _, want := range []string{"recast_boot_script_seconds_count 1\n", `recast_malformed_total{source="operator API",reason="401 Unauthorized"}`, "recast_store_writable 1\n", `recast_dhcp_reply_seconds_bucket{type="ACK",le="+Inf"} 0`} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Log("promtool is not here (apt-get install prometheus); the grammar was checked by this test alone")
		return
	}
	cmd := exec.CommandContext(t.Context(), promtool, "check", "metrics")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}
