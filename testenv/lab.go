package testenv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"recast/inventory"
	"recast/ipxe"
)

// LabSettings are what a lab was asked to be. Two labs of one name must agree.
type LabSettings struct {
	Name string `json:"name"`
	OS   OSKind `json:"os"`
	// Image is the digest of what its QEMU machines shall run; empty where it has none.
	Image inventory.Digest `json:"image,omitempty"`
	// Source is the image's file.
	Source string `json:"source,omitempty"`
	// Ramdisk is the folder of the ramdisk's files; "" for that of simulated machines.
	Ramdisk string `json:"ramdisk,omitempty"`
	// Recast is the binary that serves.
	Recast string `json:"recast"`
}

// LabState is what a lab says of itself, in Dir/lab.json. It outlives the
// supervisor, so that the lab can be resumed as what it was.
type LabState struct {
	LabSettings
	PID      int          `json:"pid"` // of the supervisor
	Server   LabServer    `json:"server"`
	Operator string       `json:"operator"`
	Machines []LabMachine `json:"machines"`
	// Images are what its machines run.
	Images []LabImage `json:"images"`
}

// Group is that of its first machine.
func (s LabState) Group() string {
	if len(s.Machines) == 0 || s.Machines[0].Kind != "simulated" {
		return rackGroup
	}
	return simEither(SimFirmware(s.Machines[0].Firmware) == SimUBoot, rackGroupARM64, rackGroupSimulated)
}

// LabImage is an image of a lab.
type LabImage struct {
	Source string           `json:"source"` // file
	Digest inventory.Digest `json:"digest"`
}

// LabMachine is one machine of a lab.
type LabMachine struct {
	Name     string `json:"name"`
	Rack     string `json:"rack"`
	Kind     string `json:"kind"` // qemu or simulated
	Firmware string `json:"firmware"`
	BMC      string `json:"bmc"`
	IP       string `json:"ip"`
	Disk     string `json:"disk"` // file
	Dir      string `json:"dir"`  // with its console
	// Faulty: it had faults when the lab was made.
	Faulty bool `json:"faulty,omitempty"`
}

const (
	labStateFile = "lab.json"
	labYAMLFile  = "lab.yaml"
)

// LabUser is the folder of what belongs to the person who called the lab up. The
// lab's own folder stays root's, who writes in it.
func LabUser(dir string) string { return filepath.Join(dir, "user") }

// LabYAML is the file that declares a lab's machines, LabSecret the one that
// holds their BMCs' credentials.
func LabYAML(dir string) string   { return filepath.Join(LabUser(dir), labYAMLFile) }
func LabSecret(dir string) string { return filepath.Join(dir, rackSecretFile) }

// LabFilePath is the copy of the LAB.yaml that the lab was made from.
func LabFilePath(dir string) string { return filepath.Join(dir, "LAB.yaml") }

// ReadLabFile reads it.
func ReadLabFile(dir string) (LabFile, error) {
	raw, err := os.ReadFile(LabFilePath(dir))
	if errors.Is(err, os.ErrNotExist) { // of a lab that was made before there were any
		f, _, err := NewLabFile(1, 2, false)
		return f, err
	}
	if err != nil {
		return LabFile{}, fmt.Errorf("read the lab's own file: %w", err)
	}
	return ParseLabFile(LabFilePath(dir), raw)
}

// LabContext is the context file with which a client reaches the lab's server.
func LabContext(dir string) string { return filepath.Join(dir, "data", "local.json") }

// ReadLab reads the state of the lab in dir; alive is false where its
// supervisor is gone, as after a kill -9.
func ReadLab(dir string) (s LabState, alive bool, err error) {
	raw, err := os.ReadFile(filepath.Join(dir, labStateFile))
	if err != nil {
		return s, false, err
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return s, false, fmt.Errorf("read the lab's state: %w", err)
	}
	// The pid may be another process by now: its command line must name the folder.
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", s.PID))
	return s, err == nil && strings.Contains(string(cmdline), dir), nil
}

// Supervise builds the rack and owns it, its BMCs and its server until the
// context ends; a server that ends is started again. What it started dies with
// this process. In the folder of a lab that was there before it goes on with its
// disks, its BMCs' account and its declarations.
func Supervise(ctx context.Context, dir string, settings LabSettings, log *slog.Logger) (err error) {
	lab, err := ReadLabFile(dir)
	if err != nil {
		return err
	}
	options := RackOptions{Name: settings.Name, Dir: dir, Log: log, Machines: lab.Machines}
	state := LabState{LabSettings: settings, PID: os.Getpid()}
	if settings.Source != "" {
		info, err := os.Stat(settings.Source)
		if err != nil {
			return fmt.Errorf("find the image: %w", err)
		}
		options.DiskSize = info.Size() + 512<<20 // larger than the image, so that its root can grow
		state.Images = append(state.Images, LabImage{settings.Source, settings.Image})
	}
	rack, err := NewRack(ctx, options)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rack.Close()) }()
	images, err := rack.SimImages(dir)
	if err != nil {
		return err
	}
	for _, group := range rack.groups() {
		if digest, ok := images[group]; ok {
			state.Images = append(state.Images, LabImage{filepath.Join(dir, group+".img"), digest})
		}
	}
	yaml := rack.YAML(RackDeclare{Image: settings.Image, Simulated: images, UserData: labUserData, MaxUnavailable: lab.MaxUnavailable, MaxFailures: lab.MaxFailures})
	if err := keepDeclarations(dir, yaml); err != nil {
		return err
	}
	ramdisk, err := labRamdisk(dir, settings.Ramdisk, lab)
	if err != nil {
		return err
	}
	config := filepath.Join(dir, "recast.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "ramdisk: %s\nsoftOff: 20s\nwatchBMCs: %s\n", ramdisk, labWatch(lab)), 0o644); err != nil {
		return fmt.Errorf("write the server's configuration: %w", err)
	}
	for name, faults := range lab.Faults {
		if err := rack.SetFaults(name, faults); err != nil {
			return err
		}
	}
	state.Operator = rack.Operator()
	for _, m := range rack.members {
		state.Machines = append(state.Machines, LabMachine{Name: m.spec.Name, Rack: m.spec.Rack, Kind: simEither(m.simulated != nil, "simulated", "qemu"),
			Firmware: string(m.spec.Firmware), BMC: string(m.spec.BMC), IP: m.ip.String(), Disk: m.disk, Dir: m.dir, Faulty: len(m.faults) > 0})
	}
	ctx, cancel := context.WithCancel(ctx)
	controlled, err := serveLabControl(ctx, dir, rack)
	if err != nil {
		cancel()
		return err
	}
	defer func() { cancel(); <-controlled }()
	start := func() (*RackServer, error) {
		return rack.Serve(RackServe{Recast: settings.Recast, Args: []string{"--config", config}})
	}
	return keepServer(ctx, start, func(s LabServer) error {
		state.Server = s
		return writeLab(dir, state)
	}, log)
}

// labWatch is how often the lab's server asks each BMC: who swaps a board, or switches
// a machine off, shall not wait for minutes.
func labWatch(lab LabFile) time.Duration {
	return max(20*time.Second, time.Duration(len(lab.Machines))*100*time.Millisecond)
}

// labRamdisk is the folder that the lab's server serves: the real one, or a small
// one where no firmware is real. Beside U-Boot's boards the real one has another
// architecture's, so that it is a copy.
func labRamdisk(dir, real string, lab LabFile) (string, error) {
	boards := slices.ContainsFunc(lab.Machines, func(m RackMachine) bool { return SimFirmware(m.Firmware) == SimUBoot })
	if real != "" && !boards {
		return real, nil
	}
	own := filepath.Join(dir, "ramdisk")
	if real != "" {
		if err := os.RemoveAll(own); err != nil {
			return "", fmt.Errorf("copy the ramdisk: %w", err)
		}
		if err := os.CopyFS(own, os.DirFS(real)); err != nil {
			return "", fmt.Errorf("copy the ramdisk: %w", err)
		}
	}
	return own, SimRamdisk(own)
}

func writeLab(dir string, state LabState) error {
	raw, err := json.MarshalIndent(state, "", "  ")
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, labStateFile+".new")
	if err := errors.Join(os.WriteFile(tmp, raw, 0o644), os.Rename(tmp, filepath.Join(dir, labStateFile))); err != nil {
		return fmt.Errorf("write the lab's state: %w", err)
	}
	return nil
}

// keepDeclarations makes the caller's folder with the file that declares the lab,
// or leaves what was edited in it. The folder may be the caller's, and a name in
// it may lead anywhere: only a file that is there and nowhere else is kept, and
// what is written is written to a name that was free.
func keepDeclarations(dir, yaml string) error {
	if info, err := os.Lstat(LabUser(dir)); err == nil && !info.IsDir() {
		if err := os.Remove(LabUser(dir)); err != nil {
			return fmt.Errorf("make the folder of the lab's declarations: %w", err)
		}
	}
	if err := os.Mkdir(LabUser(dir), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make the folder of the lab's declarations: %w", err)
	}
	path := LabYAML(dir)
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() && info.Sys().(*syscall.Stat_t).Nlink == 1 {
		return nil
	}
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("write the lab's declarations: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("write the lab's declarations: %w", err)
	}
	_, err = f.WriteString(yaml)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write the lab's declarations: %w", err)
	}
	return nil
}

// labUserData proves on the machine that it is in force: a file with the
// machine's name.
const labUserData = `#cloud-config
hostname: ${machine.name}
write_files:
  - path: /etc/motd
    content: |
      ${machine.name} runs what was declared.
`

// DownLab ends a lab and clears what a killed one left: no process, no
// namespace, no tap stays. Its folder goes too.
func DownLab(ctx context.Context, dir, name string) error {
	s, alive, err := ReadLab(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if alive {
		p, err := os.FindProcess(s.PID)
		if err == nil {
			_ = p.Signal(syscall.SIGTERM)
		}
		if err := waitGone(ctx, dir); err != nil {
			return err
		}
	}
	if err := RemoveRack(name); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// labTools are the programs a lab needs, and the Debian packages that bring them.
var labTools = []struct{ program, pkg string }{
	{"ip", "iproute2"}, // the first: all that simulated machines need
	{"qemu-system-x86_64", "qemu-system-x86"},
	{"sgdisk", "gdisk"},
	{"mkfs.ext4", "e2fsprogs"},
	{"mformat", "mtools"},
	{"grub-mkimage", "grub-common"},
}

// present looks as root would: a plain user's path often has no sbin.
func present(program string) bool {
	if _, err := exec.LookPath(program); err == nil {
		return true
	}
	if os.Geteuid() == 0 {
		return false // the lab itself would not find it
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if _, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return true
		}
	}
	return false
}

// LabMissing names what this machine lacks for a lab with QEMU machines; nil: nothing.
func LabMissing(kind OSKind) []string { return labMissing(kind, true) }

// LabMissingFor names what it, or the binary that serves, lacks for the lab of that file.
func LabMissingFor(lab LabFile, kind OSKind) ([]string, error) {
	loaders, err := ipxe.OpenLoaders()
	if err != nil {
		return nil, err
	}
	return append(labMissing(kind, lab.QEMU() > 0), lab.lacks(loaders.Have)...), nil
}

// lacks names the boot loaders without which machines of the lab stop at the first
// step. Those with a BIOS have iPXE in their network card.
func (f LabFile) lacks(have func(loader string) bool) (missing []string) {
	for _, m := range f.Machines {
		loader := ipxe.LoaderSNPOnly
		switch SimFirmware(m.Firmware) {
		case SimBIOS:
			continue
		case SimUBoot:
			loader = ipxe.LoaderARM64
		}
		line := fmt.Sprintf("the boot loader %s, as %s machines load it: ./setup.sh loaders as root, and build again", loader, m.Firmware)
		if !have(loader) && !slices.Contains(missing, line) {
			missing = append(missing, line)
		}
	}
	return missing
}

func labMissing(kind OSKind, qemu bool) []string {
	var missing []string
	if os.Geteuid() != 0 {
		missing = append(missing, "root: a lab makes a network namespace (run it with sudo)")
	}
	need := labTools
	if !qemu {
		need = labTools[:1]
	} else if kind == OSDebian {
		need = append(need, struct{ program, pkg string }{"mmdebstrap", "mmdebstrap"})
	}
	for _, t := range need {
		if !present(t.program) {
			missing = append(missing, fmt.Sprintf("%s: apt-get install %s", t.program, t.pkg))
		}
	}
	if !qemu {
		return missing
	}
	for _, f := range []struct{ path, pkg string }{
		{"/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf"}, {"/usr/lib/ipxe/qemu", "ipxe-qemu"},
		{"/usr/lib/grub/i386-pc", "grub-pc-bin"}, {"/usr/lib/grub/x86_64-efi", "grub-efi-amd64-bin"},
	} {
		if _, err := os.Stat(f.path); err != nil {
			missing = append(missing, fmt.Sprintf("%s: apt-get install %s", f.path, f.pkg))
		}
	}
	return missing
}
