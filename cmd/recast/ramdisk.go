package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"recast/image"
)

func newRamdisk() *cobra.Command {
	cmd := &cobra.Command{Use: "ramdisk", GroupID: "server", Short: "Build the ramdisk that machines netboot",
		Long: "The ramdisk is a Debian kernel with its storage and network drivers, and the agent as init.\n" +
			"Those of amd64 and arm64 lie side by side in one folder."}
	var deb, agent, firmware, out string
	build := &cobra.Command{
		Use: "build", Short: "Build kernel and ramdisk from a Debian kernel package and the agent",
		Long: `Build kernel and ramdisk from a Debian kernel package and the agent. The same inputs give
the same bytes. A server uses the new ramdisk at once.`,
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
			r, err := image.BuildRamdisk(cmd.Context(), image.RamdiskOptions{KernelDeb: deb, Agent: agent, FirmwareDir: firmware, Out: out})
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, kernel %s, ramdisk of %s\n", out, r.Arch, r.KernelVersion, size(r.Initrd.Size))
			if len(r.MissingFirmware) > 0 {
				fmt.Fprintf(cmd.OutOrStdout(), "firmware not found: %s\n", strings.Join(r.MissingFirmware, ", "))
			}
			return nil
		},
	}
	build.Flags().StringVar(&deb, "kernel", "", "the linux-image package file, of amd64 or arm64")
	build.Flags().StringVar(&agent, "agent", "", "the recast-agent binary for that architecture (default: beside this one)")
	build.Flags().StringVar(&firmware, "firmware", "/lib/firmware", "where network cards' firmware is looked for")
	build.Flags().StringVar(&out, "out", filepath.Join(defaultData, "ramdisk"), "folder to write to")
	return parent(cmd, build)
}
