// Package agent is recast's hands in the ramdisk: it claims the machine it runs
// on, tells what it is, writes the disk that the server names, reads it back,
// and reports. It chooses nothing.
//
// Agent.Run is one boot's conversation with the server; a Machine stands for the
// hardware under it, so that a simulated machine runs the same code. Write is
// the write itself. Init plays process 1 around both.
package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"recast/inventory"
	"recast/tpm"
)

// Version of the agent, as its claim tells it; set at link time.
var Version = "dev"

// Machine is what the agent needs of the hardware.
type Machine interface {
	// Facts inspects the machine; it touches no disk.
	Facts(ctx context.Context) (inventory.Facts, error)
	// OpenDisk opens the one disk that id names and refuses when there is none,
	// or more than one, or something uses it.
	OpenDisk(ctx context.Context, id inventory.DiskID) (Disk, error)
	// Variables are the firmware's; nil where it has none.
	Variables() Variables
	// LoadKernel makes a kernel ready to be started in place of a restart; initrd may
	// be nil.
	LoadKernel(kernel, initrd *os.File, args string) error
	// TPM opens the machine's; nil where it has none.
	TPM() (*tpm.Chip, error)
}

// Outcome is what shall become of the machine when the conversation is over.
type Outcome struct {
	// Kind is OrderLocal, OrderReboot, OrderPowerOff, or OrderKexec with a kernel that
	// is loaded.
	Kind   inventory.OrderKind
	Reason string
}

// Agent is one boot of the ramdisk.
type Agent struct {
	Args    Args
	Machine Machine
	// CommandLine is the kernel's, whole, which the TPM proves.
	CommandLine string
	// BootID is random per start; "" makes Run fail, since restarts could not be told apart.
	BootID string
	// Log gets readable progress for the console; nil discards.
	Log func(format string, args ...any)
	// Workers as in Work.
	Workers int
	// Patience is how long an unreachable server is asked again before the
	// machine reboots and starts anew; 0 means 30 minutes.
	Patience time.Duration
	// ReportEvery is the pause between reports of a working agent; 0 means 1 s.
	ReportEvery time.Duration
	// Pause is the wait after the n-th failure in a row, from 0; nil grows from
	// one second to thirty.
	Pause func(n int) time.Duration
	// Dial connects to the server; nil dials from here. A simulated machine has an
	// address of its own.
	Dial DialFunc

	now  func() time.Time
	wait func(n int) time.Duration
}

// errAborted carries the server's word that ended a job.
type errAborted struct{ reason string }

func (e errAborted) Error() string { return "the server stopped the job: " + e.reason }

// Run talks to the server until it has said what shall become of the machine.
// An error is an answer that no repetition changes (the claim was refused), a
// server out of reach for too long, or the end of ctx; the caller shows it and
// reboots after a wait.
func (a *Agent) Run(ctx context.Context) (Outcome, error) {
	if a.BootID == "" {
		return Outcome{}, errors.New("start agent: no boot id")
	}
	if a.Log == nil {
		a.Log = func(string, ...any) {}
	}
	if a.now == nil {
		a.now = time.Now
	}
	if a.wait == nil {
		a.wait = a.Pause
	}
	if a.wait == nil {
		a.wait = wait
	}
	if a.Patience == 0 {
		a.Patience = 30 * time.Minute
	}
	if a.ReportEvery == 0 {
		a.ReportEvery = time.Second
	}
	client, err := NewClient(a.Args.URL, a.Args.CA)
	if err != nil {
		return Outcome{}, err
	}
	defer client.Close()
	images := ImageHTTP()
	if a.Dial != nil {
		client.DialBy(a.Dial)
		images.Transport.(*http.Transport).DialContext = a.Dial
	}
	if client.trace = a.Args.Trace; client.trace != "" {
		a.Log("trace %s", client.trace)
	}
	s := &session{Agent: a, client: client, lease: NewLease(a.now), images: images}
	defer s.images.CloseIdleConnections()
	defer func() {
		if s.chip != nil {
			if err := s.chip.Close(); err != nil {
				a.Log("close the TPM: %v", err)
			}
		}
	}()

	a.Log("inspecting the machine")
	facts, err := a.Machine.Facts(ctx)
	if err != nil {
		return Outcome{}, fmt.Errorf("inspect the machine: %w", err)
	}
	if a.Args.MAC != "" {
		facts.Boot.PXEInterface = a.Args.MAC
	}
	order, err := s.introduce(ctx, facts)
	if err != nil {
		return Outcome{}, err
	}
	return s.obey(ctx, order)
}

// session is the conversation of one boot.
type session struct {
	*Agent
	client *Client
	images *http.Client
	lease  *Lease
	seq    int64
	// over is the fence and attempt of the last job that ended here: it is never
	// begun a second time.
	over *[2]int64
	// machine is who the claim's reply says we are.
	machine string
	// proved: a gate's job ended here, so that an order to start the disk is about a
	// disk that was looked at.
	proved bool
	// kept is what its gates fetched.
	kept kept
	// chip is the machine's TPM, which the server knows; nil: noTPM says why there is none.
	chip  *tpm.Chip
	noTPM string
}

// introduce claims or discovers and returns the first order.
func (s *session) introduce(ctx context.Context, facts inventory.Facts) (inventory.Order, error) {
	var order inventory.Order
	if s.Args.Discover != "" {
		s.Log("telling %s about this machine; nobody has declared it", s.Args.URL)
		err := s.retry(ctx, "discovery", func() error {
			var err error
			order, err = s.client.Discover(ctx, s.Args.Discover, facts)
			return err
		})
		return order, err
	}
	s.Log("claiming this machine at %s", s.Args.URL)
	err := s.retry(ctx, "claim", func() error {
		sent := s.now()
		reply, err := s.client.Claim(ctx, inventory.Claim{
			Nonce: s.Args.Nonce, MAC: s.Args.MAC, BootID: s.BootID, Agent: Version,
			UUID: facts.SystemVendor.UUID, Serial: facts.SystemVendor.SerialNumber,
		})
		if err == nil {
			s.lease.Renew(sent, reply.LeaseSeconds)
			s.machine = reply.Machine
			s.Log("this machine is %s", printable(reply.Machine))
		}
		return err
	})
	if err != nil {
		return order, err
	}
	if err := s.enrol(ctx, &facts); err != nil {
		return order, err
	}
	err = s.retry(ctx, "inventory", func() error {
		sent := s.now()
		var err error
		order, err = s.client.Inventory(ctx, facts)
		s.lease.Renew(sent, order.LeaseSeconds)
		return err
	})
	return order, err
}

// obey carries out orders until one ends the boot.
func (s *session) obey(ctx context.Context, order inventory.Order) (Outcome, error) {
	said := ""
	for {
		if order.Reason != said && order.Reason != "" {
			s.Log("server: %s", printable(order.Reason))
			said = order.Reason
		}
		switch order.Kind {
		case inventory.OrderLocal, inventory.OrderReboot, inventory.OrderPowerOff:
			freed := order.Kind == inventory.OrderLocal && order.FreeDisk && freeDisk(s.Machine.Variables(), s.Log)
			if order.Kind == inventory.OrderLocal && (s.proved || freed) {
				startNext(s.Machine.Variables(), s.Log)
			}
			return Outcome{Kind: order.Kind, Reason: order.Reason}, nil
		case inventory.OrderWrite, inventory.OrderWipe, inventory.OrderGate, inventory.OrderRepair, inventory.OrderKexec:
			if order.Job == nil || string(order.Job.Kind) != string(order.Kind) {
				return Outcome{}, fmt.Errorf("obey the server: an order to %s without such a job", order.Kind)
			}
			key := [2]int64{order.Job.Fence, int64(order.Job.Attempt)}
			if s.over != nil && *s.over == key {
				// The server has not yet digested our last report.
				if err := sleep(ctx, s.wait(0)); err != nil {
					return Outcome{}, err
				}
				break
			}
			done, err := s.job(ctx, *order.Job)
			if err != nil {
				return Outcome{}, err
			}
			switch {
			case done && order.Kind == inventory.OrderWipe:
				return Outcome{Kind: inventory.OrderPowerOff, Reason: "the disk is wiped and read back"}, nil
			case done && order.Kind == inventory.OrderKexec:
				return Outcome{Kind: inventory.OrderKexec, Reason: "starting " + order.Job.Kernel.Kernel.Path}, nil
			case order.Kind == inventory.OrderGate || order.Kind == inventory.OrderRepair:
				// What follows from it, the server says.
			case done:
				return Outcome{Kind: inventory.OrderLocal, Reason: "the disk is written and read back"}, nil
			}
			s.over = &key
		case inventory.OrderWait, "":
		default:
			s.Log("the server orders %q, which this agent does not know; waiting", printable(string(order.Kind)))
			if err := sleep(ctx, s.wait(2)); err != nil {
				return Outcome{}, err
			}
		}
		err := s.retry(ctx, "order", func() error {
			sent := s.now()
			var err error
			order, err = s.client.Order(ctx)
			s.lease.Renew(sent, order.LeaseSeconds)
			return err
		})
		if err != nil {
			return Outcome{}, err
		}
	}
}

// retry repeats one call through network errors and the server's own troubles.
func (s *session) retry(ctx context.Context, what string, call func() error) error {
	start := s.now()
	for n := 0; ; n++ {
		err := call()
		if err == nil || final(err) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if s.now().Sub(start) > s.Patience {
			return fmt.Errorf("%s: no success in %s: %w", what, s.Patience, err)
		}
		pause := s.wait(n)
		s.Log("%s: %v; trying again in %s", what, err, pause.Round(time.Second))
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// job does one job and tells the server how it ended. done says that the disk
// is right and the server knows it; an error ends the whole boot.
func (s *session) job(ctx context.Context, job inventory.Job) (done bool, err error) {
	progress := &Progress{}
	switch job.Kind {
	case inventory.JobWipe:
		s.Log("wiping disk %s %s", job.Disk.Name, job.Disk.Serial)
		progress.begin(inventory.AgentWriting, job.Disk.Size)
	case inventory.JobGate:
		s.Log("comparing disk %s %s with image %s", job.Disk.Name, job.Disk.Serial, job.Image.Digest.Short())
		progress.begin(inventory.AgentProving, 0)
	case inventory.JobRepair:
		s.Log("repairing disk %s %s from image %s", job.Disk.Name, job.Disk.Serial, job.Image.Digest.Short())
		progress.begin(inventory.AgentProving, 0)
	case inventory.JobKexec:
		s.Log("loading the kernel of image %s from disk %s %s", job.Image.Digest.Short(), job.Disk.Name, job.Disk.Serial)
		progress.begin(inventory.AgentLoading, 0)
	default:
		s.Log("writing image %s to disk %s %s", job.Image.Digest.Short(), job.Disk.Name, job.Disk.Serial)
		progress.begin(inventory.AgentComparing, job.Image.Size)
	}

	work, stop := context.WithCancelCause(ctx)
	reported := make(chan struct{})
	go func() {
		defer close(reported)
		s.reportUntil(work, stop, job, progress)
	}()
	var result Result
	if job.Kind == inventory.JobKexec {
		err = s.loadKernel(work, job, progress)
	} else {
		result, err = s.work(work, job, progress)
	}
	// The server's word outranks what it looked like from inside.
	if cause := context.Cause(work); err != nil && cause != nil && ctx.Err() == nil {
		err = cause
	}
	stop(nil)
	<-reported
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if refused := new(StatusError); errors.As(err, &refused) && refused.Path == reportPath && refused.Final() {
		return false, fmt.Errorf("stop the job: %w", err)
	}

	report := s.report(job, progress)
	report.Step = inventory.AgentDone
	if err == nil {
		if job.Kind == inventory.JobWrite || result.Verdict != nil && result.Verdict.Matches() {
			report.Quote = s.quote(job)
		}
		report.BootOrder, report.BootEntry = result.BootOrder, result.BootEntry
		report.ReadBack, report.Table, report.Blank = result.Image, result.Table, result.Blank
		report.Verdict, report.Unguarded = result.Verdict, result.Unguarded
		report.Done = report.Total
		switch {
		case job.Kind == inventory.JobKexec:
			s.Log("done: %s is loaded", printable(job.Kernel.Kernel.Path))
		case job.Kind == inventory.JobWipe:
			s.Log("done: %d MiB of the disk read back as zeros", result.Blank/MiB)
		case result.Verdict != nil && result.Verdict.Matches():
			s.Log("done: the regions are those of image %s", job.Image.Digest.Short())
		case result.Verdict != nil:
			s.Log("done: %d blocks differ from image %s", result.Verdict.Blocks(), job.Image.Digest.Short())
		default:
			s.Log("done: the disk reads back as image %s", result.Image.Short())
		}
	} else {
		report.Step, report.Error = inventory.AgentFailed, err.Error()
		if bad := new(BadFrameError); errors.As(err, &bad) {
			report.BadFrame = &bad.Frame
		}
		s.Log("failed: %v", err)
	}
	if err == nil && (job.Kind == inventory.JobGate || job.Kind == inventory.JobRepair) {
		s.proved = true
	}
	var reply inventory.ReportReply
	rerr := s.retry(ctx, "last report", func() (err error) {
		reply, err = s.client.Report(ctx, report)
		return err
	})
	if rerr == nil && reply.Abort {
		// What is done is not what the server waits for, by now: its next order says what is.
		s.Log("%v", errAborted{reason: printable(reply.Reason)})
	}
	return err == nil && rerr == nil && !reply.Abort, rerr
}

// work does what the job says to the disk it names.
func (s *session) work(ctx context.Context, job inventory.Job, progress *Progress) (Result, error) {
	if job.Machine != s.machine {
		return Result{}, fmt.Errorf("the job is for %q, this machine is %q", printable(job.Machine), printable(s.machine))
	}
	disk, err := s.Machine.OpenDisk(ctx, job.Disk)
	if err != nil {
		return Result{}, err
	}
	do := Write
	switch job.Kind {
	case inventory.JobWipe:
		do = Wipe
	case inventory.JobGate, inventory.JobRepair:
		do = Gate
	}
	result, err := do(ctx, Work{
		Job: job, Disk: disk, Config: s.client.Config, EFI: s.Machine.Variables(),
		Lease: s.lease, Progress: progress, HTTP: s.images, Workers: s.Workers,
		Log: s.Log, kept: &s.kept, wait: s.wait,
	})
	if cerr := disk.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("close disk: %w", cerr)
	}
	return result, err
}

const reportPath = "/agent/v1/report"

func (s *session) report(job inventory.Job, progress *Progress) inventory.Report {
	s.seq++
	r := inventory.Report{BootID: s.BootID, Fence: job.Fence, Attempt: job.Attempt, Seq: s.seq}
	progress.fill(&r)
	return r
}

// reportUntil reports until ctx ends. A refusal or an abort ends the work; an
// unreachable server does not, the lease does that.
func (s *session) reportUntil(ctx context.Context, stop context.CancelCauseFunc, job inventory.Job, progress *Progress) {
	tick := time.NewTicker(s.ReportEvery)
	defer tick.Stop()
	var meter meter
	for {
		report := s.report(job, progress)
		if line := meter.line(report, s.now()); line != "" {
			s.Log("%s", line)
		}
		sent := s.now()
		reply, err := s.client.Report(ctx, report)
		switch {
		case err == nil && reply.Abort:
			stop(errAborted{reason: printable(reply.Reason)})
			return
		case err == nil:
			s.lease.Renew(sent, reply.LeaseSeconds)
		case final(err):
			stop(err)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// meter turns reports into an occasional console line.
type meter struct {
	last time.Time
	step inventory.AgentStep
	done int64
}

// line is empty unless the step changed or five seconds have passed.
func (m *meter) line(r inventory.Report, now time.Time) string {
	if r.Step == m.step && now.Sub(m.last) < 5*time.Second {
		return ""
	}
	rate := ""
	if r.Step == m.step {
		if d := now.Sub(m.last).Seconds(); d > 0 {
			rate = fmt.Sprintf(", %.0f MiB/s", float64(r.Done-m.done)/d/MiB)
		}
	}
	m.last, m.step, m.done = now, r.Step, r.Done
	return fmt.Sprintf("%-11s %d of %d MiB%s, %d MiB fetched, %d MiB written",
		r.Step, r.Done/MiB, r.Total/MiB, rate, r.Fetched/MiB, r.Written/MiB)
}
