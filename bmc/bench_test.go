package bmc_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"recast/bmc"
	"recast/inventory"
	"recast/testenv"
)

// The benchmark runs in three processes, so that the CPU time and memory of our
// client are its own: this one, the BMCs, the client. The environment says which.
const benchRole = "RECAST_BENCH_BMC"

func TestMain(m *testing.M) {
	var err error
	switch role, arg, _ := strings.Cut(os.Getenv(benchRole), " "); role {
	case "":
		os.Exit(m.Run())
	case "serve":
		err = benchServe(arg)
	case "drive":
		err = benchDrive()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// benchBMC is one virtual BMC as its clients see it.
type benchBMC struct {
	URL string
	Pin inventory.Digest
}

// benchServe serves "redfish 500" until its input ends, and then prints how many
// machines were stopped once and started once, from the network.
func benchServe(what string) error {
	kind, n, _ := strings.Cut(what, " ")
	count, err := strconv.Atoi(n)
	if err != nil {
		return err
	}
	machines := make([]*testenv.SimMachine, count)
	out := json.NewEncoder(os.Stdout)
	for i := range machines {
		machines[i] = &testenv.SimMachine{Firmware: true}
		if err := machines[i].PowerOn(context.Background()); err != nil {
			return err
		}
		b := benchBMC{}
		if kind == "redfish" {
			server, err := testenv.NewRedfish(testenv.RedfishOptions{User: user, Password: password, Machine: machines[i]})
			if err != nil {
				return err
			}
			b = benchBMC{URL: server.URL(), Pin: server.Pin()}
		} else {
			server, err := testenv.NewIPMI(testenv.IPMIOptions{User: user, Password: password, Machine: machines[i]})
			if err != nil {
				return err
			}
			b = benchBMC{URL: server.URL()}
		}
		if err := out.Encode(b); err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	right := 0
	for _, m := range machines {
		if starts := m.Starts(); m.Powered() && m.Stops() == 1 && len(starts) == 2 && starts[1].Device == testenv.BootPXE && starts[1].UEFI {
			right++
		}
	}
	return out.Encode(right)
}

// benchResult is what a client process used.
type benchResult struct {
	Wall, CPU time.Duration
	Peak      int64 // bytes resident at the most, all of the process
}

// benchDrive re-images by the BMC's part: login, state, off, boot once, on, verify
// in a second conversation, logout; all BMCs of its input at once.
func benchDrive() error {
	var targets []bmc.Target
	in := json.NewDecoder(os.Stdin)
	for {
		var b benchBMC
		if err := in.Decode(&b); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		targets = append(targets, bmc.Target{URL: b.URL, Pin: b.Pin, User: user, Password: password})
	}
	began, before := time.Now(), cpuTime(syscall.RUSAGE_SELF)
	f := &bmc.Fleet{Rate: -1}
	next := bmc.NextBoot{Device: bmc.BootNetwork, UEFI: true}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	failed := make([]error, len(targets))
	var work sync.WaitGroup
	for i, t := range targets {
		work.Go(func() {
			failed[i] = errors.Join(f.Do(ctx, t, func(ctx context.Context, c bmc.Client) error {
				if state, err := c.Power(ctx); err != nil || state != bmc.PowerOn {
					return fmt.Errorf("%s at first: %w", state, err)
				}
				if err := c.Off(ctx, true); err != nil {
					return err
				}
				if err := c.SetNextBoot(ctx, next); err != nil {
					return err
				}
				return c.On(ctx)
			}), f.Do(ctx, t, func(ctx context.Context, c bmc.Client) error {
				state, err := c.Power(ctx)
				if err != nil || state != bmc.PowerOn {
					return fmt.Errorf("%s at last: %w", state, err)
				}
				_, err = c.NextBoot(ctx)
				return err
			}))
		})
	}
	work.Wait()
	if err := errors.Join(append(failed, f.Close(ctx))...); err != nil {
		return err
	}
	r := benchResult{Wall: time.Since(began), CPU: cpuTime(syscall.RUSAGE_SELF) - before}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		if n, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(n)[0], 10, 64)
			if err != nil {
				return err
			}
			r.Peak = kb << 10
		}
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

func cpuTime(who int) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(who, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// benchRack starts a process with virtual BMCs; stop says how many machines were
// cycled once into a network boot.
func benchRack(b *testing.B, kind string, count int) (rack []benchBMC, stop func() int) {
	b.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), fmt.Sprintf("%s=serve %s %d", benchRole, kind, count))
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := c.Start(); err != nil {
		b.Fatal(err)
	}
	lines := json.NewDecoder(bufio.NewReader(out))
	for range count {
		var one benchBMC
		if err := lines.Decode(&one); err != nil {
			b.Fatal(err)
		}
		rack = append(rack, one)
	}
	return rack, func() (right int) {
		b.Helper()
		if err := errors.Join(in.Close(), lines.Decode(&right), c.Wait()); err != nil {
			b.Fatal(err)
		}
		return right
	}
}

// ours is what our client uses for a rack.
func ours(b *testing.B, kind string, count int) (r benchResult) {
	b.Helper()
	rack, stop := benchRack(b, kind, count)
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), benchRole+"=drive")
	c.Stderr = os.Stderr
	var in bytes.Buffer
	for _, one := range rack {
		if err := json.NewEncoder(&in).Encode(one); err != nil {
			b.Fatal(err)
		}
	}
	c.Stdin = &in
	out, err := c.Output()
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	if right := stop(); right != count {
		b.Errorf("%d of %d machines were cycled once, into a network boot", right, count)
	}
	if err != nil {
		b.Fatal(err)
	}
	return r
}

// BenchmarkFleet takes 500 BMCs through a re-image's part of the work, and a few of
// them by the client that people use instead, for its CPU time each.
func BenchmarkFleet(b *testing.B) {
	const machines, few = 500, 40
	for _, kind := range []struct {
		name, peer string
		run        func(*testing.B, []benchBMC) time.Duration
	}{
		{"redfish", "sushy", sushy},
		{"ipmi", "ipmitool", ipmitool},
	} {
		b.Run(kind.name, func(b *testing.B) {
			var sum benchResult
			var peer time.Duration
			for range b.N {
				r := ours(b, kind.name, machines)
				sum.Wall, sum.CPU, sum.Peak = sum.Wall+r.Wall, sum.CPU+r.CPU, max(sum.Peak, r.Peak)
				rack, stop := benchRack(b, kind.name, few)
				took := kind.run(b, rack)
				if right := stop(); took > 0 && right != few {
					b.Errorf("%s cycled %d of %d machines", kind.peer, right, few)
				}
				peer += took
			}
			n := float64(b.N)
			b.ReportMetric(sum.CPU.Seconds()/n, "cpu-s/500")
			b.ReportMetric(sum.Wall.Seconds()/n, "wall-s/500")
			b.ReportMetric(float64(sum.Peak)/1e6, "peak-MB")
			if peer > 0 {
				b.ReportMetric((peer.Seconds()/few)/(sum.CPU.Seconds()/machines), kind.peer+"-cpu/ours")
			}
		})
	}
}

// ipmitool does the same with one process and one session for each BMC; 0 where
// there is none.
func ipmitool(b *testing.B, rack []benchBMC) (cpu time.Duration) {
	tool, err := exec.LookPath("ipmitool")
	if err != nil {
		b.Log("no ipmitool to compare with (apt-get install ipmitool)")
		return 0
	}
	script := filepath.Join(b.TempDir(), "cycle")
	if err := os.WriteFile(script, []byte("chassis power status\nchassis power off\nchassis power status\nchassis bootdev pxe options=efiboot\nchassis bootparam get 5\nchassis power on\nchassis power status\nchassis power status\nchassis bootparam get 5\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	for _, one := range rack {
		u, err := url.Parse(one.URL)
		if err != nil {
			b.Fatal(err)
		}
		c := exec.Command(tool, "-I", "lanplus", "-C", "17", "-H", u.Hostname(), "-p", u.Port(), "-U", user, "-P", password, "exec", script)
		if out, err := c.CombinedOutput(); err != nil {
			b.Fatalf("ipmitool: %v: %s", err, out)
		}
		cpu += c.ProcessState.SystemTime() + c.ProcessState.UserTime()
	}
	return cpu
}

const sushyScript = `
import sys, urllib3, sushy
from sushy import auth
urllib3.disable_warnings()
for url in sys.argv[3:]:
    a = auth.SessionAuth(sys.argv[1], sys.argv[2])
    root = sushy.Sushy(url, auth=a, verify=False)
    s = root.get_system(root.get_system_collection().members_identities[0])
    assert s.power_state == sushy.PowerState.ON
    s.reset_system(sushy.ResetType.FORCE_OFF)
    s.refresh(force=True)
    assert s.power_state == sushy.PowerState.OFF
    s.set_system_boot_options(target=sushy.BootSource.PXE, enabled=sushy.BootSourceOverrideEnabled.ONCE, mode=sushy.BootSourceOverrideMode.UEFI)
    s.refresh(force=True)
    assert s.boot.target == sushy.BootSource.PXE
    s.reset_system(sushy.ResetType.ON)
    s.refresh(force=True)
    assert s.power_state == sushy.PowerState.ON
    s.refresh(force=True)
    a.close()
`

// sushy does the same in one process, whose start does not count; 0 where there
// is none.
func sushy(b *testing.B, rack []benchBMC) time.Duration {
	const python = "/usr/bin/python3"
	run := func(urls ...string) (time.Duration, error) {
		c := exec.Command(python, append([]string{"-c", sushyScript, user, password}, urls...)...)
		c.Env = []string{"PATH=/usr/bin:/bin"} // REQUESTS_CA_BUNDLE would overrule verify=False
		if out, err := c.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("%w: %s", err, out)
		}
		return c.ProcessState.SystemTime() + c.ProcessState.UserTime(), nil
	}
	start, err := run()
	if err != nil {
		b.Log("no sushy to compare with (apt-get install python3-sushy)")
		return 0
	}
	urls := make([]string, 0, len(rack))
	for _, one := range rack {
		urls = append(urls, strings.Replace(one.URL, "redfish://", "https://", 1))
	}
	all, err := run(urls...)
	if err != nil {
		b.Fatalf("sushy: %v", err)
	}
	return all - start
}
