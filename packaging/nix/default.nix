# SPDX-License-Identifier: BSD-2-Clause
#
# nix-build packaging/nix
#
# Not built by the project's own tests, which have no nixpkgs: it is parsed there (nix-instantiate --parse).
{
  pkgs ? import <nixpkgs> { },
}:

pkgs.rustPlatform.buildRustPackage {
  pname = "ebpfkit";
  version = "0.1.0";

  src = pkgs.lib.cleanSource ../..;
  cargoLock.lockFile = ../../Cargo.lock;

  # The wrapped compiler adds flags for the machine's own code that BPF does not know.
  CLANG = "${pkgs.llvmPackages.clang-unwrapped}/bin/clang";
  nativeBuildInputs = [ pkgs.pkg-config ];
  buildInputs = [
    pkgs.elfutils
    pkgs.zlib
  ];

  # The others load programs into the kernel.
  cargoTestFlags = [
    "--lib"
    "--test"
    "cli"
  ];
  checkFlags = [
    "--skip"
    "root::"
  ];

  postInstall = ''
    make install BINARY=$out/bin/ebpfkit PREFIX=$out DESTDIR= SYSCONFDIR=$out/etc \
      UNITDIR=$out/lib/systemd/system SYSUSERSDIR=$out/lib/sysusers.d
  '';

  meta = {
    description = "Guard the cloud metadata service and watch TLS with eBPF";
    homepage = "https://ebpfkit.example/";
    license = with pkgs.lib.licenses; [
      bsd2
      gpl2Only
    ];
    platforms = [
      "x86_64-linux"
      "aarch64-linux"
    ];
    mainProgram = "ebpfkit";
  };
}
