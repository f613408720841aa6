package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"recast/image"
	"recast/inventory"
	"recast/testenv"
)

// labFlags say which lab, and where labs stand.
type labFlags struct {
	name, root string
}

const (
	defaultLabName = "lab"
	defaultLabRoot = "/var/lib/recast-lab"
)

func (f *labFlags) dir() string { return filepath.Join(f.root, f.name) }

// command is how this lab is called, for texts.
func (f *labFlags) command(verb string) string {
	line := "recast lab " + verb
	if f.name != defaultLabName {
		line += " --name " + shellWord(f.name)
	}
	if f.root != defaultLabRoot {
		line += " --root " + shellWord(f.root)
	}
	return line
}

// others are the labs that stand beside this one.
func (f *labFlags) others() []string {
	files, _ := filepath.Glob(filepath.Join(f.root, "*", "lab.json"))
	var names []string
	for _, file := range files {
		names = append(names, filepath.Base(filepath.Dir(file)))
	}
	return names
}

// none says that there is no such lab, and which there are.
func (f *labFlags) none() error {
	if others := f.others(); len(others) > 0 {
		return fmt.Errorf("there is no lab %q; there is --name %s, or %s makes one", f.name, strings.Join(others, ", --name "), f.command("up"))
	}
	return fmt.Errorf("there is no lab %q; %s makes one", f.name, f.command("up"))
}

// down says that the lab's supervisor ended, what stays of it and what to do.
func (f *labFlags) down() error {
	return fmt.Errorf("lab %q is down: its supervisor ended (%s says more), its disks and its store stand; %s resumes it, %s clears it",
		f.name, filepath.Join(f.dir(), "lab.log"), f.command("up"), f.command("down"))
}

func newLab() *cobra.Command {
	cmd := &cobra.Command{Use: "lab", GroupID: "server", Short: "A virtual rack on this machine, to try everything",
		Long: `A virtual rack on this machine: a network namespace with two QEMU machines behind virtual BMCs
and a recast server of its own, or the racks of QEMU and simulated machines that a LAB.yaml
declares. The host's network is left alone. It needs root and some Debian packages, which lab up
names where they are missing.`}
	var f labFlags
	cmd.PersistentFlags().StringVar(&f.name, "name", defaultLabName, "name of the lab; several may run at once")
	cmd.PersistentFlags().StringVar(&f.root, "root", defaultLabRoot, "folder that holds labs and what they have cached")
	return parent(cmd, newLabUp(&f), newLabDown(&f), newLabStatus(&f),
		newLabFault(&f), newLabReset(&f), newLabTamper(&f), newLabLog(&f), newLabSupervise(&f))
}

// labShape are the flags that say what a lab is made of.
type labShape struct {
	file           string
	racks, perRack int
	simulated      bool
	given          bool // any of them
}

// read gives the lab file and its text.
func (l labShape) read() (testenv.LabFile, []byte, error) {
	if l.file == "" {
		lab, text, err := testenv.NewLabFile(l.racks, l.perRack, l.simulated)
		if err != nil {
			return lab, nil, codeError{fmt.Errorf("lab up %w", err), exitUsage}
		}
		return lab, text, nil
	}
	raw, err := os.ReadFile(l.file)
	if errors.Is(err, os.ErrNotExist) {
		return testenv.LabFile{}, nil, codeError{fmt.Errorf("read the lab's file: there is no %q; recast lab up --help shows one", l.file), exitUsage}
	}
	if err != nil {
		return testenv.LabFile{}, nil, fmt.Errorf("read the lab's file: %w", err)
	}
	lab, err := testenv.ParseLabFile(l.file, raw)
	if err != nil {
		return lab, nil, codeError{fmt.Errorf("the lab's file is refused; recast lab up --help shows one:\n%w", err), exitUsage}
	}
	return lab, raw, nil
}

func newLabUp(f *labFlags) *cobra.Command {
	var kind, kernel string
	var shape labShape
	cmd := &cobra.Command{
		Use: "up", Short: "Build a rack, a server and an image, and deploy the machines",
		Long: `Build a virtual rack in a network namespace of its own: two QEMU machines, one BIOS behind IPMI,
one UEFI behind Redfish; start a server in it, ingest an image, apply a definition, and show the
machines until both are active. On a running lab it goes on watching; a lab whose supervisor ended
it resumes with its disks, its store and its lab.yaml as they are.

--racks, --per-rack and --simulated, or a file, make another lab of it. A simulated machine is
played by the lab: its DHCP, TFTP and HTTP requests, its agent and its BMC are real, its disk is
small, and thousands fit in a process. It runs an image of its own. A LAB.yaml looks so; only racks
has to be there:

  os: tiny                  # of the QEMU machines: debian, or tiny (boots in seconds)
  racks:                    # the machines of r1 are r1u01, r1u02 …
  - {name: r1, machines: 48, kind: simulated}
  - {name: r2, machines: 48, kind: simulated, firmware: uefi, bmc: redfish}
  machines:                 # what differs from the rack
    r1u01: {kind: qemu, nics: 2, disks: [2GiB, {size: 1GiB, bus: nvme, discard: true}]}
    r2u07: {firmware: uefi-http, bmc: ipmi}
    r2u08: {link: {loss: 0.05, delay: 20ms}}
  faults:                   # as lab fault --help names them
    r2u03: no-boot
    r2u04: [lose-boot, delay=2s]
  rollout: {maxUnavailable: 25%, maxFailures: 2}

kind is qemu (the default) or simulated; firmware is bios, uefi, uefi-http, or u-boot (an arm64
board, simulated alone); bmc is ipmi, redfish or none. Who says neither gets bios behind ipmi in odd
units, uefi behind redfish in even ones. bootOrder is disk (the default) or network, which a gate
(boot.every) needs; tpm: true gives a machine a TPM 2.0, by swtpm; drive: true gives a QEMU machine
a CD drive, which boot.via: media needs (simulated ones behind Redfish have one).
A disk of a QEMU machine is on ahci, virtio, nvme or scsi. link is the machine's
cable, each way: what share of frames it loses, duplicates or reorders, how long it delays each, and
which vlan the switch port behind it carries, tagged.`,
		Example: "  sudo recast lab up\n  sudo recast lab up --os tiny --name second\n  sudo recast lab up --racks 4 --per-rack 48 --simulated\n  sudo recast lab up -f LAB.yaml",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, name := range []string{"file", "racks", "per-rack", "simulated"} {
				shape.given = shape.given || cmd.Flags().Changed(name)
			}
			if shape.file != "" && (cmd.Flags().Changed("racks") || cmd.Flags().Changed("per-rack") || cmd.Flags().Changed("simulated")) {
				return codeError{errors.New("lab up: the file says what the lab is made of; leave --racks, --per-rack and --simulated out"), exitUsage}
			}
			asked := kind
			if !cmd.Flags().Changed("os") {
				asked = ""
			}
			err := labUp(cmd, f, testenv.OSKind(asked), kernel, shape)
			if err != nil && cmd.Context().Err() != nil {
				return f.interrupted()
			}
			return err
		},
	}
	cmd.Flags().StringVar(&kind, "os", string(testenv.OSDebian), "what to deploy: debian, or tiny (boots in seconds)")
	cmd.Flags().StringVar(&kernel, "kernel", "", "a linux-image-*-amd64 package file (default: the one in .cache, else downloaded by apt-get)")
	cmd.Flags().StringVarP(&shape.file, "file", "f", "", "a LAB.yaml that declares the racks")
	cmd.Flags().IntVar(&shape.racks, "racks", 1, "how many racks")
	cmd.Flags().IntVar(&shape.perRack, "per-rack", 2, "how many machines in each")
	cmd.Flags().BoolVar(&shape.simulated, "simulated", false, "play the machines instead of emulating them")
	return cmd
}

// interrupted says in one line what goes on, and how to go on.
func (f *labFlags) interrupted() error {
	if s, alive, err := testenv.ReadLab(f.dir()); err == nil {
		up := f.command("up")
		if s.OS != testenv.OSDebian {
			up += " --os " + string(s.OS)
		}
		state := "runs on"
		if !alive {
			state = "is down"
		}
		return fmt.Errorf("interrupted: lab %q %s; %s resumes, %s clears it", f.name, state, up, f.command("down"))
	}
	return fmt.Errorf("interrupted: lab %q is not built yet; %s begins again with what is cached, %s clears the rest", f.name, f.command("up"), f.command("down"))
}

func labUp(cmd *cobra.Command, f *labFlags, asked testenv.OSKind, kernel string, shape labShape) error {
	if asked != "" && asked != testenv.OSDebian && asked != testenv.OSTiny {
		return codeError{fmt.Errorf("lab up --os %q: want %s or %s", asked, testenv.OSDebian, testenv.OSTiny), exitUsage}
	}
	if err := inventory.CheckName(f.name); err != nil {
		return codeError{fmt.Errorf("lab up --name: %w", err), exitUsage}
	}
	lab, text, err := shape.read()
	if err != nil {
		return err
	}
	// Whoever names no system, or no racks, takes what is there.
	kind := cmp.Or(asked, lab.OS, testenv.OSDebian)
	if s, _, err := testenv.ReadLab(f.dir()); err == nil {
		if asked == "" {
			kind = s.OS
		}
		if !shape.given {
			if lab, err = testenv.ReadLabFile(f.dir()); err != nil {
				return err
			}
		}
	}
	missing, err := testenv.LabMissingFor(lab, kind)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return fmt.Errorf("a lab needs what is not here:\n  %s", strings.Join(missing, "\n  "))
	}
	// The supervisor has a folder of its own to work in, and so may who pastes.
	root, err := filepath.Abs(f.root)
	if err != nil {
		return err
	}
	f.root = root
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	running, alive, err := testenv.ReadLab(f.dir())
	var before *testenv.LabState // what is resumed
	switch {
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return err
	case alive:
		if err := f.same(running, kind, shape, text); err != nil {
			return err
		}
		fmt.Fprintf(out, "Lab %q is running; watching it.\n", f.name)
	default:
		if err == nil { // its supervisor was killed: clear what it left
			if err := f.same(running, kind, shape, text); err != nil {
				return err
			}
			if err := testenv.RemoveRack(f.name); err != nil {
				return err
			}
			fmt.Fprintf(out, "Lab %q is down; resuming it with its disks.\n", f.name)
			was := running
			before = &was
		}
		settings, err := prepareLab(ctx, out, f, lab, kind, kernel, before)
		if err != nil {
			return err
		}
		if before == nil {
			if err := f.keepFile(text); err != nil {
				return err
			}
		}
		if running, err = startSupervisor(ctx, f, settings); err != nil {
			return err
		}
	}
	c, err := labClient(ctx, f.dir())
	if err != nil {
		return err
	}
	if err := f.giveToCaller(c); err != nil {
		return err
	}
	// A lab up that was interrupted may have left the lab undeclared.
	var set inventory.Set
	if err := c.call(ctx, http.MethodGet, "/api/v1/set", nil, &set); err != nil {
		return err
	}
	if len(set.Machines) == 0 {
		if err := declareLab(cmd, c, f, running); err != nil {
			return err
		}
	} else if before != nil {
		_, ask := ownCommand(f, running)
		fmt.Fprintf(out, "Its machines are off, as after a power failure; to start them: %s power on %s\n", ask, strings.Join(machineNames(running), " "))
	}
	if err := watchLab(cmd, c, f, running); err != nil {
		return err
	}
	printNext(out, f, running)
	return nil
}

// keepFile makes the lab's folder, with what it is made of: a resumed lab is the
// same.
func (f *labFlags) keepFile(text []byte) error {
	if err := os.MkdirAll(f.dir(), 0o755); err != nil {
		return fmt.Errorf("make the lab's folder: %w", err)
	}
	if err := os.WriteFile(testenv.LabFilePath(f.dir()), text, 0o644); err != nil {
		return fmt.Errorf("keep the lab's file: %w", err)
	}
	return nil
}

// same refuses to go on with a lab that was asked to be another.
func (f *labFlags) same(running testenv.LabState, kind testenv.OSKind, shape labShape, text []byte) error {
	if shape.given {
		if kept, err := os.ReadFile(testenv.LabFilePath(f.dir())); err != nil || !bytes.Equal(kept, text) {
			return codeError{fmt.Errorf("lab %q stands with other racks; %s shows them, %s ends it, another --name starts another",
				running.Name, f.command("status"), f.command("down")), exitRefused}
		}
	}
	if running.OS == kind {
		return nil
	}
	return codeError{fmt.Errorf("lab %q stands with --os %s, not %s; %s ends it, another --name starts another",
		running.Name, running.OS, kind, f.command("down")), exitRefused}
}

// prepareLab makes image and ramdisk, each cached by its inputs. A lab that was
// there before keeps its image: that is what its lab.yaml names.
func prepareLab(ctx context.Context, out io.Writer, f *labFlags, lab testenv.LabFile, kind testenv.OSKind, kernel string, before *testenv.LabState) (s testenv.LabSettings, err error) {
	self, err := os.Executable()
	if err != nil {
		return s, err
	}
	if lab.QEMU() == 0 { // nobody boots a real image or ramdisk
		return testenv.LabSettings{Name: f.name, OS: kind, Recast: self}, nil
	}
	agent := filepath.Join(filepath.Dir(self), "recast-agent")
	if _, err := os.Stat(agent); err != nil {
		return s, fmt.Errorf("find the agent: %w; make build puts it beside recast", err)
	}
	cache := filepath.Join(f.root, ".cache")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return s, fmt.Errorf("make the lab's cache: %w", err)
	}
	if kernel == "" {
		if kernel, err = findKernel(ctx, cache); err != nil {
			return s, err
		}
	}
	start := time.Now()
	fmt.Fprintf(out, "Ramdisk from %s ...\n", filepath.Base(kernel))
	ramdisk := filepath.Join(cache, "ramdisk")
	if _, err := image.BuildRamdisk(ctx, image.RamdiskOptions{KernelDeb: kernel, Agent: agent, FirmwareDir: image.FirmwareOf("/"), Root: "/", Out: ramdisk}); err != nil {
		return s, err
	}
	if before != nil {
		if _, err := os.Stat(before.Source); err == nil {
			s = before.LabSettings
			s.Ramdisk, s.Recast = ramdisk, self
			return s, nil
		}
	}
	fmt.Fprintf(out, "Image %q ...\n", kind)
	img, err := testenv.BuildOS(ctx, testenv.OSOptions{Kind: kind, CacheDir: cache, KernelDeb: kernel, AgentBin: agent})
	if err != nil {
		return s, err
	}
	fmt.Fprintf(out, "Both ready after %s.\n", time.Since(start).Round(time.Second))
	return testenv.LabSettings{Name: f.name, OS: kind, Image: img.Digest, Source: img.Path, Ramdisk: ramdisk, Recast: self}, nil
}

// findKernel looks where make setup puts the package, then asks apt.
func findKernel(ctx context.Context, cache string) (string, error) {
	for _, dir := range []string{".cache", cache} {
		if deb, err := testenv.FindKernelDeb(dir); err == nil {
			return deb, nil
		}
	}
	raw, err := exec.CommandContext(ctx, "apt-cache", "depends", "--important", "linux-image-amd64").Output()
	if err != nil {
		return "", fmt.Errorf("find the kernel package: apt-cache: %w; name one with --kernel", err)
	}
	for line := range strings.Lines(string(raw)) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: ")
		if !ok || !strings.HasPrefix(name, "linux-image-") {
			continue
		}
		get := exec.CommandContext(ctx, "apt-get", "download", name)
		get.Dir = cache
		if text, err := get.CombinedOutput(); err != nil {
			return "", fmt.Errorf("download %s: %w: %s", name, err, strings.TrimSpace(string(text)))
		}
		return testenv.FindKernelDeb(cache)
	}
	return "", errors.New("find the kernel package: linux-image-amd64 is not known to apt; name one with --kernel")
}

// startSupervisor starts the process that owns the lab and outlives this one.
func startSupervisor(ctx context.Context, f *labFlags, s testenv.LabSettings) (testenv.LabState, error) {
	if err := os.MkdirAll(f.dir(), 0o755); err != nil {
		return testenv.LabState{}, fmt.Errorf("make the lab's folder: %w", err)
	}
	log, err := os.OpenFile(filepath.Join(f.dir(), "lab.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return testenv.LabState{}, fmt.Errorf("open the lab's log: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(s.Recast, "lab", "supervise", "--dir", f.dir(), "--name", f.name, "--os", string(s.OS),
		"--image", string(s.Image), "--source", s.Source, "--ramdisk", s.Ramdisk)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a closed terminal must not end it
	if err := cmd.Start(); err != nil {
		return testenv.LabState{}, fmt.Errorf("start the lab's supervisor: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	wait, cancel := context.WithTimeout(ctx, 5*time.Minute) // thousands of machines take their time
	defer cancel()
	return testenv.AwaitLab(wait, f.dir(), func() error {
		select {
		case err := <-ended:
			return fmt.Errorf("the lab's supervisor ended (%v); see %s", err, log.Name())
		default:
			return nil
		}
	})
}

// labClient waits until the lab's server answers.
func labClient(ctx context.Context, dir string) (*client, error) {
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	var last error
	for {
		cc, err := readContext(testenv.LabContext(dir))
		if err == nil {
			c, err := newClient(cc)
			if err != nil {
				return nil, err
			}
			if err = c.call(wait, "GET", "/api/v1/version", nil, nil); err == nil {
				return c, nil
			}
			last = err
		} else {
			last = err
		}
		select {
		case <-wait.Done():
			return nil, fmt.Errorf("reach the lab's server: %w; see %s", last, filepath.Join(dir, "server.log"))
		case <-t.C:
		}
	}
}

// declareLab does what an operator would: secret, image, apply.
func declareLab(cmd *cobra.Command, c *client, f *labFlags, s testenv.LabState) error {
	secret, err := os.ReadFile(testenv.LabSecret(f.dir()))
	if err != nil {
		return fmt.Errorf("read the BMCs' credentials: %w", err)
	}
	if err := setSecret(cmd.Context(), c, testenv.RackSecret, string(secret)); err != nil {
		return err
	}
	fmt.Fprintln(cmd.OutOrStdout(), "Ingesting the image ...")
	for _, img := range s.Images {
		if _, err := addImage(cmd, c, img.Source, img.Digest.String()); err != nil {
			return err
		}
	}
	erase, keep, err := labErase(s.Machines)
	if err != nil {
		return err
	}
	p, err := askPlan(cmd, c, []string{testenv.LabYAML(f.dir())}, erase)
	if err != nil {
		return err
	}
	if len(keep) > 0 {
		_, ask := ownCommand(f, s)
		fmt.Fprintf(cmd.OutOrStdout(), "The disks of %s hold what was written before, and are applied without --erase.\nTo write them anew: %s apply %s --erase %s\n",
			strings.Join(keep, ", "), ask, shellWord(testenv.LabYAML(f.dir())), strings.Join(keep, ","))
	}
	printPlan(cmd.OutOrStdout(), p)
	if p.Empty() {
		return nil
	}
	return apply(cmd, c, p.Digest)
}

// labErase names the machines whose disks hold only what the lab filled them
// with, which alone it lets the server erase, and those that hold more.
func labErase(machines []testenv.LabMachine) (erase, keep []string, err error) {
	for _, m := range machines {
		untouched, err := testenv.RackUntouched(m.Disk)
		switch {
		case err != nil:
			return nil, nil, fmt.Errorf("%s: %w", m.Name, err)
		case untouched:
			erase = append(erase, m.Name)
		default:
			keep = append(keep, m.Name)
		}
	}
	return erase, keep, nil
}

func machineNames(s testenv.LabState) []string {
	names := make([]string, len(s.Machines))
	for i, m := range s.Machines {
		names[i] = m.Name
	}
	return names
}
