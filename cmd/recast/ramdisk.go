package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"recast/image"
	"recast/inventory"
)

func newRamdisk() *cobra.Command {
	cmd := &cobra.Command{Use: "ramdisk", GroupID: "server", Short: "Build the ramdisk that machines netboot",
		Long: "The ramdisk is a Debian kernel with its storage and network drivers, and the agent as init.\n" +
			"Those of amd64 and arm64 lie side by side in one folder."}
	var deb, agent, firmware, out string
	build := &cobra.Command{
		Use: "build", Short: "Build kernel and ramdisk from a Debian kernel package and the agent",
		Long: `Build kernel and ramdisk from a Debian kernel package and the agent. The same inputs give
the same bytes. A server uses the new ramdisk at once. Where the package systemd-boot-efi is
installed, both are made as one UEFI program too: machines with a TPM start that, which their
firmware measures whole.`,
		Example: "  apt-get download linux-image-6.1.0-40-amd64\n  recast ramdisk build --kernel linux-image-*.deb",
		Args:    arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if agent == "" {
				self, err := os.Executable()
				if err != nil {
					return err
				}
				agent = filepath.Join(filepath.Dir(self), "recast-agent")
			}
			if deb == "" {
				return codeError{errors.New("name the kernel package with --kernel: apt-get download what linux-image-amd64 depends on"), exitUsage}
			}
			if !cmd.Flags().Changed("firmware") {
				firmware = image.FirmwareOf("/")
			}
			r, err := image.BuildRamdisk(cmd.Context(), image.RamdiskOptions{KernelDeb: deb, Agent: agent, FirmwareDir: firmware, Root: "/", Out: out})
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, kernel %s, ramdisk of %s\n", out, r.Arch, r.KernelVersion, size(r.Initrd.Size))
			if !r.Unified {
				fmt.Fprintln(cmd.OutOrStdout(), "not as one UEFI program, which a TPM measures whole: for evidence of measured, apt-get install systemd-boot-efi and build it again")
			}
			if r.Outdated {
				fmt.Fprintln(cmd.OutOrStdout(), "the signed one was of the build before and is removed: recast ramdisk export, sign, and import it")
			}
			if len(r.MissingFirmware) > 0 {
				fmt.Fprintf(cmd.OutOrStdout(), "firmware not found in %s; where machines' cards need some of it, install Debian's package (firmware-bnx2x, …) and build again: %s\n",
					firmware, strings.Join(r.MissingFirmware, ", "))
			}
			return nil
		},
	}
	build.Flags().StringVar(&deb, "kernel", "", "the linux-image package file, of amd64 or arm64")
	build.Flags().StringVar(&agent, "agent", "", "the recast-agent binary for that architecture (default: beside this one)")
	build.Flags().StringVar(&firmware, "firmware", "/lib/firmware", "where network cards' firmware is looked for")
	build.Flags().StringVar(&out, "out", filepath.Join(localData(), "ramdisk"), "folder to write to")
	return parent(cmd, build, newRamdiskExport(), newRamdiskImport())
}

func newRamdiskExport() *cobra.Command {
	var dir, stub, arch string
	cmd := &cobra.Command{
		Use: "export FILE", Short: "Write the ramdisk as one UEFI program, to be signed",
		Long: `Write kernel and ramdisk as one UEFI program (a unified kernel image), unsigned, so that
your own key can vouch for both. Sign it and import it; machines with secureBoot: true and
an imported iPXE as loader then start that. Needs the stub of the package systemd-boot-efi.`,
		Example: "  recast ramdisk export ramdisk.efi\n  sbsign --key db.key --cert db.crt --output signed.efi ramdisk.efi\n  recast ramdisk import signed.efi",
		Args:    arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := image.OpenRamdisk(dir, inventory.Arch(arch))
			if err != nil {
				return err
			}
			if stub == "" {
				stub = image.StubOf("/", r.Arch)
			}
			b, err := os.ReadFile(stub)
			if err != nil {
				return fmt.Errorf("read the stub: %w; apt-get install systemd-boot-efi, or name it with --stub", err)
			}
			if b, err = image.Unify(b, r); err != nil {
				return err
			}
			if err := os.WriteFile(args[0], b, 0o644); err != nil {
				return fmt.Errorf("write the ramdisk: %w", err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, kernel %s, %s, not signed\n", args[0], r.Arch, r.KernelVersion, size(int64(len(b))))
			return nil
		},
	}
	cmd.Flags().StringVar(&stub, "stub", "", "systemd's stub (default: where systemd-boot-efi puts it)")
	ramdiskFlags(cmd, &dir, &arch)
	return cmd
}

func newRamdiskImport() *cobra.Command {
	var dir, arch string
	cmd := &cobra.Command{
		Use: "import FILE", Short: "Take an exported ramdisk back that was signed",
		Long: `Take an exported ramdisk back that was signed. It must be of the ramdisk that was built last;
the next build removes it. Machines with secureBoot: true and an imported iPXE as loader
get it from then on, and their firmware must trust its signature.`,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := image.OpenRamdisk(dir, inventory.Arch(arch))
			if err != nil {
				return err
			}
			b, err := os.ReadFile(args[0])
			if err != nil {
				return fmt.Errorf("read the signed ramdisk: %w", err)
			}
			to, err := image.ImportUnified(b, r)
			if err != nil {
				return codeError{err, exitRefused}
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, kernel %s\n", to, r.Arch, r.KernelVersion)
			return nil
		},
	}
	ramdiskFlags(cmd, &dir, &arch)
	return cmd
}

func ramdiskFlags(cmd *cobra.Command, dir, arch *string) {
	cmd.Flags().StringVar(dir, "ramdisk", filepath.Join(localData(), "ramdisk"), "folder of the ramdisk")
	cmd.Flags().StringVar(arch, "arch", string(inventory.AMD64), "architecture: amd64 or arm64")
}
