package testenv

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"recast/inventory"
)

// simBuild builds the server once for all tests of this package; $RECAST_BIN
// names one that is built already.
var simBuild = sync.OnceValues(func() (string, error) {
	if bin := os.Getenv("RECAST_BIN"); bin != "" {
		return bin, nil
	}
	dir, err := os.MkdirTemp("", "recast-sim-")
	if err != nil {
		return "", err
	}
	simBuilt = dir
	bin := filepath.Join(dir, "recast")
	args := []string{"build", "-o", bin}
	if os.Getenv("RECAST_RACE") != "" {
		args = append(args, "-race")
	}
	out, err := exec.Command("go", append(args, "recast/cmd/recast")...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build recast: %w: %s", err, out)
	}
	return bin, nil
})

// simBuilt is the folder to remove at the end.
var simBuilt string

func TestMain(m *testing.M) {
	if what := os.Getenv(benchBMCs); what != "" {
		if err := benchServe(what); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if job := os.Getenv(benchWrite); job != "" {
		if err := benchWriteJob(job); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	if simBuilt != "" {
		_ = os.RemoveAll(simBuilt)
	}
	os.Exit(code)
}

// simServer is a `recast serve` of its own, on loopback ports that it keeps over
// restarts, with a rack of simulated machines. Nothing of it needs root.
type simServer struct {
	t      testing.TB
	dir    string
	data   string
	config string
	boot   string // host:port as the machines reach it
	listen string // and where it listens
	api    string
	bin    string
	// settings are added to the configuration.
	settings string

	cmd  *exec.Cmd
	done chan struct{}
	http *http.Client
	log  *os.File

	machines []*Simulated
}

const (
	simUser, simPassword = "recast", "simulated-bmc"
	simSecret            = "sim-bmc"
)

func newSimServer(t testing.TB, change ...func(*simServer)) *simServer {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil && os.Getenv("RECAST_BIN") == "" {
		t.Skip("needs go in the PATH, or RECAST_BIN=/path/to/recast")
	}
	bin, err := simBuild()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s := &simServer{t: t, dir: dir, data: filepath.Join(dir, "data"), config: filepath.Join(dir, "recast.yaml"),
		boot: simFreeAddr(t), api: simFreeAddr(t), bin: bin}
	s.listen = s.boot
	for _, f := range change {
		f(s)
	}
	ramdisk := filepath.Join(dir, "ramdisk")
	simMust(t, os.MkdirAll(ramdisk, 0o755))
	// The agent of a simulated machine is this process; only the fetch is real.
	for _, f := range []string{"vmlinuz", "initrd.img", "ramdisk-unsigned.efi"} {
		simMust(t, os.WriteFile(filepath.Join(ramdisk, f), bytes.Repeat([]byte(f), 1000), 0o644))
	}
	simMust(t, os.WriteFile(s.config, fmt.Appendf(nil, "data: %s\nboot: %s\nagent: %s\nramdisk: %s\nsoftOff: 1ms\n%s", s.data, s.listen, s.api, ramdisk, s.settings), 0o644))
	if s.log, err = os.Create(filepath.Join(dir, "server.log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, m := range s.machines {
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		}
		s.kill()
		s.log.Close()
		if t.Failed() {
			raw, _ := os.ReadFile(s.log.Name())
			if len(raw) > 20000 {
				raw = raw[len(raw)-20000:]
			}
			t.Logf("server:\n%s", raw)
			for _, m := range s.machines {
				for _, b := range m.Boots() {
					t.Logf("%s: %s start %d (%s): %s", m.Options.Name, b.At.Format("05.000"), b.Number, b.Once, strings.Join(b.Path, " → "))
				}
			}
		}
	})
	s.start()
	return s
}

func simMust(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func simFreeAddr(t testing.TB) string {
	t.Helper()
	port, err := FreePort()
	simMust(t, err)
	return fmt.Sprintf("127.0.0.1:%d", port)
}

// launch the server and wait for nothing.
func (s *simServer) launch() {
	s.t.Helper()
	s.cmd = exec.Command(s.bin, "serve", "--config", s.config)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	simMust(s.t, s.cmd.Start())
	done := make(chan struct{})
	s.done = done
	go func(cmd *exec.Cmd) { defer close(done); _ = cmd.Wait() }(s.cmd)
}

// start the server and wait until its API answers.
func (s *simServer) start() {
	s.t.Helper()
	s.launch()
	done := s.done
	s.await("the server answers", 60*time.Second, func() bool {
		select {
		case <-done:
			raw, _ := os.ReadFile(s.log.Name())
			s.t.Fatalf("the server has ended:\n%s", raw)
		default:
		}
		if s.http == nil {
			pem, err := os.ReadFile(filepath.Join(s.data, "ca.pem"))
			if err != nil {
				return false
			}
			pool := x509.NewCertPool()
			if !pool.AppendCertsFromPEM(pem) {
				return false
			}
			s.http = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
		}
		return s.call(http.MethodGet, "/api/v1/version", nil, nil) == nil
	})
}

// kill -9, and wait for the end.
func (s *simServer) kill() {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	<-s.done
	if s.http != nil {
		s.http.CloseIdleConnections()
	}
}

// await polls; the deadline is the caller's idea of never.
func (s *simServer) await(what string, within time.Duration, ok func() bool) {
	s.t.Helper()
	deadline := time.Now().Add(within)
	for !ok() {
		if time.Now().After(deadline) {
			s.tell()
			s.t.Fatalf("not within %s: %s", within, what)
		}
		time.Sleep(15 * time.Millisecond)
	}
}

// tell what the machines that have not arrived last went through.
func (s *simServer) tell() {
	var views []simView
	if err := s.call(http.MethodGet, "/api/v1/machines", nil, &views); err != nil {
		s.t.Logf("the server says: %v", err)
	}
	for _, v := range views {
		if v.Status.Phase == "active" && v.Sync == "in sync" && v.Status.Health == "healthy" {
			continue
		}
		s.t.Logf("%s waits for %q: %+v", v.Name, v.Waiting, v)
		lines := s.timeline(v.Name)
		for _, l := range lines[max(0, len(lines)-40):] {
			s.t.Logf("%s %s %s: %s", v.Name, l.Time.Format("05.000"), l.Kind, l.Text)
		}
	}
}

// errSimAnswer is an answer that is not a success.
type errSimAnswer struct {
	code int
	text string
}

func (e errSimAnswer) Error() string { return fmt.Sprintf("%d: %s", e.code, e.text) }

// call the operator's API as an operator would, with JSON in and out.
func (s *simServer) call(method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		raw, ok := in.([]byte)
		if !ok {
			var err error
			if raw, err = json.Marshal(in); err != nil {
				return err
			}
		}
		body = bytes.NewReader(raw)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	resp, err := s.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return errSimAnswer{resp.StatusCode, strings.TrimSpace(string(raw))}
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(raw, out)
}

func (s *simServer) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "https://"+s.api+path, body)
	if err != nil {
		return nil, err
	}
	token, err := os.ReadFile(filepath.Join(s.data, "operator.token"))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	return s.http.Do(req)
}

// must is call, and the test ends where it fails.
func (s *simServer) must(method, path string, in, out any) {
	s.t.Helper()
	if err := s.call(method, path, in, out); err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
}

// simView is what the tests read of a machine's view.
type simView struct {
	Name    string
	Sync    string
	Waiting string
	Wanted  inventory.Digest
	Status  struct {
		Phase, Step, Health string
		Running, Wanted     inventory.Digest
		Attempt, Restarts   int
		Since, Deadline     time.Time
		NextAction          string
		LastError           string
		FailedImage         inventory.Digest
		Evidence            struct{ Level, Detail string }
		Hold                *struct{ Owner, Reason string }
		Findings            []string
		Moved               struct{ Fetched, Written int64 }
		Gate                *struct {
			Step, Verdict, Detail string
			Repairs               []struct{ Blocks int64 }
		}
		TPM *struct {
			EK, AK, Other []byte
			Quote         *struct {
				At, Digest, Nonce string
				Generation        inventory.Digest
			}
		}
	}
}

func (v simView) String() string {
	st := v.Status
	return fmt.Sprintf("%s %s/%s attempt %d sync %q health %s error %q next %q waiting %q findings %q",
		v.Name, st.Phase, st.Step, st.Attempt, v.Sync, st.Health, st.LastError, st.NextAction, v.Waiting, st.Findings)
}

func (s *simServer) view(name string) (v simView) {
	s.t.Helper()
	s.must(http.MethodGet, "/api/v1/machines/"+name, nil, &v)
	return v
}

// simLine is one line of a machine's timeline.
type simLine struct {
	Time       time.Time
	Kind, Text string
}

func (s *simServer) timeline(name string) []simLine {
	s.t.Helper()
	var x struct{ Timeline []simLine }
	s.must(http.MethodGet, "/api/v1/machines/"+name+"/explain", nil, &x)
	return x.Timeline
}

// watch gives every view that the server sends, until ctx or the server ends.
func (s *simServer) watch(ctx context.Context) <-chan simView {
	out := make(chan simView, 1000)
	go func() {
		defer close(out)
		resp, err := s.do(ctx, http.MethodGet, "/api/v1/watch", nil)
		if err != nil {
			return
		}
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			data, ok := strings.CutPrefix(lines.Text(), "data: ")
			var v simView
			if !ok || json.Unmarshal([]byte(data), &v) != nil {
				continue
			}
			select {
			case out <- v:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// addImage through the API.
func (s *simServer) addImage(raw []byte) inventory.Digest {
	s.t.Helper()
	var info struct{ Digest inventory.Digest }
	s.must(http.MethodPost, "/api/v1/images", raw, &info)
	if info.Digest != inventory.DigestOf(raw) {
		s.t.Fatalf("image %s was taken for %s", inventory.DigestOf(raw), info.Digest)
	}
	return info.Digest
}

func (s *simServer) setSecret(name, value string) {
	s.t.Helper()
	s.must(http.MethodPut, "/api/v1/secrets/"+name, map[string]string{"value": value}, nil)
}

const (
	simImageSize = 5 << 20
	simDiskSize  = 20 << 20
)

// add builds the machine named m<i>, off; change may alter it first.
func (s *simServer) add(i int, change func(*SimulatedOptions)) *Simulated {
	s.t.Helper()
	o := SimulatedOptions{
		Name: fmt.Sprintf("m%02d", i), Dir: s.dir, MAC: inventory.MAC(fmt.Sprintf("52:54:00:99:00:%02x", i)),
		UUID: fmt.Sprintf("5ca1ab1e-0000-4000-8000-0000000000%02x", i), Serial: fmt.Sprintf("SIM%04d", i),
		UEFI: i%2 == 0, Fill: 0xA5, Server: s.boot, BMC: BMCIPMI, User: simUser, Password: simPassword,
		Disks: []inventory.DiskID{{Serial: fmt.Sprintf("SIM%04d-0", i), Size: simDiskSize}},
	}
	if i%2 == 0 {
		o.BMC = BMCRedfish
	}
	if os.Getenv("RECAST_VERBOSE") != "" {
		o.Log = s.t.Logf
	}
	if change != nil {
		change(&o)
	}
	m, err := NewSimulated(o)
	simMust(s.t, err)
	s.machines = append(s.machines, m)
	return m
}

// simDeclare says what the machines of a server shall run.
type simDeclare struct {
	Image    inventory.Digest
	UserData string // "" for one that sets the hostname
	Spec     string // added to the Definition's spec
	// Immutable partitions of the image, as a YAML list.
	Immutable string
	Verity    string                // data and tree partitions, as a YAML map; "" none
	State     string                // likewise; "" is not said
	Kernel    string                // boot of the image, as a YAML map; "" none
	Hint      string                // of disk.select; "" the size
	Unknown   string                // of the Network
	Without   []string              // machines left out
	Shy       bool                  // declare neither serial nor UUID
	Failures  string                // maxFailures; "" all
	NoBMC     []string              // declared without their BMC
	Labels    string                // of the group's selector
	Behind    map[string]*Simulated // whose BMC is declared for a machine; nil each its own
}

func (s *simServer) yaml(d simDeclare) string {
	var b strings.Builder
	or := func(v, otherwise string) string {
		if v == "" {
			return otherwise
		}
		return v
	}
	fmt.Fprintf(&b, "apiVersion: recast/v1\nkind: Network\nmetadata: {name: sim}\nspec: {subnet: 127.0.0.0/8, dhcp: off, unknown: %s}\n", or(d.Unknown, "ignore"))
	state := ""
	if d.State != "" {
		state = ", state: " + d.State
	}
	if d.Verity != "" {
		state += ", verity: " + d.Verity
	}
	if d.Kernel != "" {
		state += ", boot: " + d.Kernel
	}
	fmt.Fprintf(&b, "---\napiVersion: recast/v1\nkind: Image\nmetadata: {name: sim}\nspec: {type: disk, arch: amd64, digest: %q, immutable: %s%s}\n", d.Image, or(d.Immutable, "[]"), state)
	fmt.Fprintf(&b, "---\napiVersion: recast/v1\nkind: Definition\nmetadata: {name: sim}\nspec:\n  image: sim\n  disk: {select: {%s}}\n  config:\n    format: cloud-init\n    userData: |\n%s%s",
		or(d.Hint, "minSize: 16MiB"), rackIndent(or(d.UserData, "#cloud-config\nhostname: ${machine.name}\n"), "      "), d.Spec)
	fmt.Fprintf(&b, "---\napiVersion: recast/v1\nkind: Group\nmetadata: {name: sim}\nspec: {select: {rack: sim}, definition: sim, rollout: {maxUnavailable: 100%%, maxFailures: %s}}\n", or(d.Failures, "100%"))
	for _, m := range s.machines {
		o := m.Options
		if d.Without != nil && rackListed(d.Without, o.Name) {
			continue
		}
		fmt.Fprintf(&b, "---\napiVersion: recast/v1\nkind: Machine\nmetadata: {name: %s, labels: {rack: sim}}\nspec:\n  nics: [{mac: %q, network: sim}]\n", o.Name, o.MAC)
		if !d.Shy {
			fmt.Fprintf(&b, "  serial: %q\n  uuid: %q\n", o.Serial, o.UUID)
		}
		if other := d.Behind[o.Name]; other != nil {
			m = other
		}
		switch {
		case d.NoBMC != nil && rackListed(d.NoBMC, o.Name):
		case m.IPMI != nil:
			fmt.Fprintf(&b, "  bmc: {url: %q, credentials: %s}\n", m.IPMI.URL(), simSecret)
		case m.Redfish != nil:
			fmt.Fprintf(&b, "  bmc: {url: %q, credentials: %s, pin: %q}\n", m.Redfish.URL(), simSecret, m.Redfish.Pin())
		}
	}
	return b.String()
}

// simPlan is what the tests read of a plan.
type simPlan struct {
	Digest  inventory.Digest
	Entries []struct {
		Machine, Kind, Why, Disk, Holds, Blocked, Waits, Whole string
		FetchBytes, WriteBytes, ImageBytes                     int64
	}
	Changes []string
}

func (s *simServer) plan(d simDeclare, erase ...string) (p simPlan) {
	s.t.Helper()
	s.must(http.MethodPost, "/api/v1/plan", map[string]any{
		"files": []inventory.File{{Name: "sim.yaml", Data: []byte(s.yaml(d))}}, "erase": erase}, &p)
	return p
}

// apply plans and applies, with every machine named for erasing.
func (s *simServer) apply(d simDeclare) simPlan {
	s.t.Helper()
	var erase []string
	for _, m := range s.machines {
		if d.Without == nil || !rackListed(d.Without, m.Options.Name) {
			erase = append(erase, m.Options.Name)
		}
	}
	p := s.plan(d, erase...)
	s.must(http.MethodPost, "/api/v1/apply", map[string]any{"plan": p.Digest}, nil)
	return p
}

// awaitActive waits until the machine runs what is wanted of it, and said so.
func (s *simServer) awaitActive(name string, within time.Duration) (v simView) {
	s.t.Helper()
	deadline := time.Now().Add(within)
	for {
		v = s.view(name)
		if v.Status.Phase == "active" && v.Sync == "in sync" && v.Status.Health == "healthy" {
			return v
		}
		if time.Now().After(deadline) {
			for _, l := range s.timeline(name) {
				s.t.Logf("%s %s %s: %s", name, l.Time.Format("05.000"), l.Kind, l.Text)
			}
			s.t.Fatalf("not active within %s: %v", within, v)
		}
		time.Sleep(15 * time.Millisecond)
	}
}
