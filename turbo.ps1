# Finds a Python 3.10 to 3.13 and starts turbo.py with it:  .\turbo.ps1 generate "a red circle"
# Where scripts are not allowed:  powershell -ExecutionPolicy Bypass -File turbo.ps1 doctor
$door = Join-Path $PSScriptRoot 'turbo.py'
$test = 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'
foreach ($words in @('py -3.12', 'py -3.11', 'py -3.13', 'py -3.10', 'python', 'python3')) {
    $program, $which = $words -split ' '
    if (-not (Get-Command $program -ErrorAction SilentlyContinue)) { continue }
    $which = @($which | Where-Object { $_ })
    & $program @which -c $test 2>$null
    if ($LASTEXITCODE -eq 0) {
        & $program @which $door @args
        exit $LASTEXITCODE
    }
}
[Console]::Error.WriteLine('error [setup-python]: no Python 3.10 to 3.13 was found.')
[Console]::Error.WriteLine('  fix: winget install --exact --id Python.Python.3.12')
exit 3
